#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "builders.h"
#include "checkpoint/gguf_blocks.h"

namespace nibble {
namespace {

using test::bytes_of;
using test::error_of;
using test::GgufFile;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// What every model file has. hidden 64, 2 heads of 32 and 1 KV head, feed-forward 256.
GgufFile model(const std::string& arch = "llama", const std::string& skip = "") {
  GgufFile f;
  f.string("general.architecture", arch);
  const std::pair<const char*, std::uint32_t> keys[] = {
      {"block_count", 1},           {"context_length", 128},     {"embedding_length", 64},
      {"feed_forward_length", 256}, {"attention.head_count", 2}, {"attention.head_count_kv", 1}};
  for (const auto& [key, value] : keys)
    if (key != skip) f.u32(arch + "." + key, value);
  f.f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f);
  f.f32(arch + ".rope.freq_base", 50000);
  f.f32_tensor("token_embd.weight", {3, 64}, std::vector<float>(3 * 64, 1));
  return f;
}

struct Opened {
  std::string bytes;
  std::unique_ptr<Checkpoint> checkpoint;
  Checkpoint* operator->() const { return checkpoint.get(); }
};
Opened open(const GgufFile& f, bool keep_16bit = false) {
  Opened o{f.build(), nullptr};
  o.checkpoint = open_gguf(Blob::view(bytes_of(o.bytes), "m.gguf"), {keep_16bit});
  return o;
}
std::string open_error(const GgufFile& f) {
  return error_of([&] { open(f); });
}

std::string block_bytes(std::size_t bytes, std::uint32_t seed) {
  std::string s;
  for (std::size_t i = 0; i < bytes; ++i) {
    seed = seed * 1664525 + 1013904223;
    s += static_cast<char>(seed >> 24);
  }
  return s;
}

TEST(GgufConfig, ReadsTheMetadata) {
  const auto c = open(model());
  const ModelConfig& m = c->config();
  EXPECT_EQ(c->format(), "gguf v3");
  EXPECT_EQ(m.architecture, "llama");
  EXPECT_EQ(m.hidden, 64);
  EXPECT_EQ(m.layers, 1);
  EXPECT_EQ(m.heads, 2);
  EXPECT_EQ(m.kv_heads, 1);
  EXPECT_EQ(m.head_dim, 32);
  EXPECT_EQ(m.intermediate, 256);
  EXPECT_EQ(m.vocab, 3);
  EXPECT_EQ(m.max_position, 128);
  EXPECT_EQ(m.rms_eps, static_cast<double>(1e-5f));
  EXPECT_EQ(m.rope_theta, 50000);
  EXPECT_TRUE(m.tied_embedding);
  EXPECT_FALSE(m.qkv_bias || m.o_bias || m.qk_norm);
  EXPECT_FALSE(c->tokenizer().has_value());
  EXPECT_FALSE(c->chat_template().has_value());
  EXPECT_THAT(c->notices(), IsEmpty());
}

TEST(GgufConfig, TensorsTellTheVariant) {
  const std::vector<float> v(64, 1);
  const auto c = open(model("qwen3")
                          .u32("qwen3.attention.key_length", 16)
                          .u32("qwen3.attention.value_length", 16)
                          .f32_tensor("output.weight", {3, 64}, std::vector<float>(192, 2))
                          .f32_tensor("blk.0.attn_q.bias", {32}, std::vector<float>(32, 1))
                          .f32_tensor("blk.0.attn_output.bias", {64}, v)
                          .f32_tensor("blk.0.attn_q_norm.weight", {16}, std::vector<float>(16, 1)));
  const ModelConfig& m = c->config();
  EXPECT_EQ(m.head_dim, 16);
  EXPECT_FALSE(m.tied_embedding);
  EXPECT_TRUE(m.qkv_bias && m.o_bias && m.qk_norm);
  EXPECT_TRUE(c->has("lm_head.weight"));
  EXPECT_TRUE(c->has("model.layers.0.self_attn.q_norm.weight"));
}

TEST(GgufConfig, RopeFactorsComeFromTheirTensor) {
  std::vector<float> factors(16, 1);
  factors[15] = 8;
  const auto c = open(model().f32_tensor("rope_freqs.weight", {16}, factors));
  EXPECT_EQ(c->config().rope_factors, factors);
  EXPECT_FALSE(c->has("rope_freqs.weight"));
  EXPECT_THAT(open_error(model().f32_tensor("rope_freqs.weight", {15}, std::vector<float>(15, 1))),
              HasSubstr("expected F32 [16]"));
  factors[3] = 0;
  EXPECT_THAT(open_error(model().f32_tensor("rope_freqs.weight", {16}, factors)),
              AllOf(HasSubstr("rope_freqs.weight"), HasSubstr("no RoPE factor")));
}

TEST(GgufConfig, WhatIsNotSupportedIsNamed) {
  EXPECT_THAT(open_error(GgufFile().string("general.architecture", "mamba")),
              AllOf(HasSubstr("m.gguf: "), HasSubstr("\"mamba\""), HasSubstr("llama qwen2 qwen3")));
  EXPECT_THAT(open_error(GgufFile()), HasSubstr("architecture \"\""));
  EXPECT_THAT(open_error(model("llama", "block_count")),
              HasSubstr("the key llama.block_count is missing"));
  EXPECT_THAT(open_error(model().u32("llama.expert_count", 8)), HasSubstr("mixture of experts"));
  EXPECT_THAT(open_error(model().string("llama.rope.scaling.type", "yarn")), HasSubstr("\"yarn\""));
  EXPECT_THAT(
      open_error(
          model().string("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4)),
      HasSubstr("\"linear\""));
  EXPECT_THAT(open_error(model().f32("llama.rope.scale_linear", 2)), HasSubstr("scale_linear"));
  EXPECT_THAT(open_error(model().u32("llama.rope.dimension_count", 16)),
              HasSubstr("RoPE over 16 of 32 dimensions"));
  EXPECT_THAT(open_error(model().u32("llama.attention.value_length", 16)),
              HasSubstr("value heads"));
  EXPECT_THAT(
      open_error(
          model().u32("llama.attention.key_length", 31).u32("llama.attention.value_length", 31)),
      HasSubstr("head dimension of 31"));
  EXPECT_THAT(open_error(model().u32("llama.attention.sliding_window", 64)), HasSubstr("sliding"));
  EXPECT_THAT(open_error(model().bytes("split.count", 2, std::string("\2\0", 2))),
              HasSubstr("one of 2 parts"));
  EXPECT_THAT(open_error(model().f32_tensor("blk.0.ffn_gate_inp.weight", {1, 64},
                                            std::vector<float>(64, 1))),
              AllOf(HasSubstr("\"blk.0.ffn_gate_inp.weight\""), HasSubstr("no place")));
  EXPECT_THAT(open_error(model("llama", "embedding_length").u32("llama.embedding_length", 32)),
              HasSubstr("token_embd.weight"));
  EXPECT_NO_THROW(open(model()
                           .string("llama.rope.scaling.type", "none")
                           .u32("llama.attention.sliding_window", 128)
                           .u32("llama.expert_count", 0)));
}

TEST(GgufConfig, ImpossibleSizesAreNamed) {
  for (const char* key : {"block_count", "context_length", "embedding_length",
                          "feed_forward_length", "attention.head_count"})
    for (const std::uint64_t value :
         {std::uint64_t{0}, ~std::uint64_t{0}, std::uint64_t{1} << 62}) {
      std::string bytes;
      test::put(bytes, value);
      EXPECT_THAT(open_error(model("llama", key).bytes(std::string("llama.") + key, 10, bytes)),
                  AllOf(HasSubstr("m.gguf: "), HasSubstr(key)));
    }
  EXPECT_THAT(
      open_error(model("llama", "attention.head_count_kv").u32("llama.attention.head_count_kv", 3)),
      HasSubstr("head_count_kv"));
}

// The exact types, as the source hands them on: rows of random blocks against decode_blocks, which
// the reference vectors check.
TEST(GgufWeights, ExactTypesKeepTheirValuesAndForm) {
  const std::tuple<std::uint32_t, WeightType, bool> types[] = {{2, WeightType::Int4, true},
                                                               {3, WeightType::Int4Aff, true},
                                                               {6, WeightType::Int8, true},
                                                               {8, WeightType::Int8, true},
                                                               {12, WeightType::Int4Aff, false}};
  for (const auto& [id, as, f16] : types) {
    const BlockType& t = *find_block_type(id);
    const std::int64_t blocks = 256 / t.values;
    std::string data = block_bytes(static_cast<std::size_t>(5 * blocks * t.bytes), id);
    for (std::size_t b = 0; b < data.size(); b += static_cast<std::size_t>(t.bytes))
      for (const std::size_t half : {1, 3}) data[b + half] &= 0x3f;  // finite scales
    const auto c = open(model().tensor("blk.0.ffn_down.weight", id, {5, 256}, data));
    const auto w = c->weight("model.layers.0.mlp.down_proj.weight", 5, 256);
    EXPECT_EQ(w->format().type, as) << t.name;
    EXPECT_EQ(w->format().group, 32);
    EXPECT_EQ(w->format().scales_are_f16, f16) << t.name;
    std::vector<float> expected(5 * 256);
    decode_blocks(t, bytes_of(data).data(), 5 * blocks, expected.data());
    EXPECT_EQ(dequantise(*w, 0, 5), expected) << t.name;
    EXPECT_EQ(dequantise(*w, 3, 2), std::vector(expected.begin() + 3 * 256, expected.end()));
    w->release(0, 5);
    EXPECT_THAT(c->notices(), IsEmpty());
  }
}

TEST(GgufWeights, TheOthersAreRequantisedOrKeptIn16BitAndSaySo) {
  for (const std::uint32_t id : {7u, 13u, 14u}) {
    const BlockType& t = *find_block_type(id);
    const std::int64_t blocks = 256 / t.values;
    std::string data = block_bytes(static_cast<std::size_t>(2 * blocks * t.bytes), id);
    for (std::size_t b = 0; b < data.size(); b += static_cast<std::size_t>(t.bytes))
      for (const std::size_t half : {1, 3, 209})
        if (half < static_cast<std::size_t>(t.bytes)) data[b + half] &= 0x3b;
    std::vector<float> exact(512);
    decode_blocks(t, bytes_of(data).data(), 2 * blocks, exact.data());
    const GgufFile f = model().tensor("blk.0.ffn_up.weight", id, {2, 256}, data);
    const std::string name = "model.layers.0.mlp.up_proj.weight";

    const auto c = open(f);
    const auto w = c->weight(name, 2, 256);
    EXPECT_EQ(w->format().type, WeightType::Int8);
    EXPECT_EQ(w->format().group, 32);
    const auto got = dequantise(*w, 0, 2);
    for (std::size_t g = 0; g < 512; g += 32) {
      float largest = 0;
      for (std::size_t i = g; i < g + 32; ++i) largest = std::max(largest, std::fabs(exact[i]));
      for (std::size_t i = g; i < g + 32; ++i)
        EXPECT_LE(std::fabs(got[i] - exact[i]), largest / 127 * 0.51f) << t.name << " " << i;
    }
    EXPECT_THAT(c->notices(),
                ElementsAre(AllOf(HasSubstr("1 tensor stored as " + std::string(t.name)),
                                  HasSubstr("requantised to int8 group 32"))));
    EXPECT_EQ(c->tensors()[0].stored_type + c->tensors()[1].stored_type,
              "F32" + std::string(t.name));

    const auto kept = open(f, true);
    const auto k = kept->weight(name, 2, 256);
    EXPECT_EQ(k->format().type, WeightType::F16);
    const auto halves = dequantise(*k, 0, 2);
    for (std::size_t i = 0; i < 512; ++i)
      EXPECT_EQ(halves[i], half_to_float(float_to_half(exact[i]))) << t.name << " " << i;
    EXPECT_THAT(kept->notices(), ElementsAre(HasSubstr("rounded to fp16")));
  }
}

TEST(GgufWeights, PlainTypes) {
  const std::vector<float> values = {1, -0.5f, 3, 0, 2, 7};
  const auto c = open(model()
                          .tensor("blk.0.ffn_up.weight", 0, {2, 3}, test::raw(values))
                          .tensor("blk.0.ffn_gate.weight", 1, {2, 3}, test::halves(values))
                          .tensor("blk.0.ffn_down.weight", 30, {2, 3}, test::bfloats(values)));
  const std::pair<const char*, WeightType> expected[] = {
      {"up", WeightType::F32}, {"gate", WeightType::F16}, {"down", WeightType::BF16}};
  for (const auto& [which, type] : expected) {
    const auto w = c->weight(fmt::format("model.layers.0.mlp.{}_proj.weight", which), 2, 3);
    EXPECT_EQ(w->format().type, type);
    EXPECT_EQ(dequantise(*w, 0, 2), values);
  }
}

// Interleaved by the converter: within a head, row i of half h goes to 2i + h.
TEST(GgufWeights, LlamaQueryAndKeyRowsAreReordered) {
  for (const std::string arch : {"llama", "qwen2"}) {
    std::vector<float> rows(64 * 2), bias(32);
    for (std::size_t r = 0; r < 64; ++r) rows[2 * r] = rows[2 * r + 1] = static_cast<float>(r);
    std::iota(bias.begin(), bias.end(), 0.0f);
    const auto c = open(model(arch)
                            .f32_tensor("blk.0.attn_q.weight", {64, 2}, rows)
                            .f32_tensor("blk.0.attn_v.weight", {64, 2}, rows)
                            .f32_tensor("blk.0.attn_k.bias", {32}, bias));
    const auto stored_row = [&](std::int64_t r) {
      if (arch != "llama") return r;
      const std::int64_t head = r / 32, half = r % 32 / 16, i = r % 16;
      return head * 32 + 2 * i + half;
    };
    const auto q = c->weight("model.layers.0.self_attn.q_proj.weight", 64, 2);
    const auto all = dequantise(*q, 0, 64), part = dequantise(*q, 40, 3);
    for (std::int64_t r = 0; r < 64; ++r)
      EXPECT_EQ(all[static_cast<std::size_t>(2 * r + 1)], static_cast<float>(stored_row(r)))
          << arch << r;
    EXPECT_EQ(part[0], static_cast<float>(stored_row(40)));
    EXPECT_EQ(part[4], static_cast<float>(stored_row(42)));
    q->release(40, 3);
    const auto k = c->vector("model.layers.0.self_attn.k_proj.bias", 32);
    for (std::int64_t r = 0; r < 32; ++r)
      EXPECT_EQ(k[static_cast<std::size_t>(r)], static_cast<float>(stored_row(r))) << arch << r;
    EXPECT_EQ(dequantise(*c->weight("model.layers.0.self_attn.v_proj.weight", 64, 2), 0, 64), rows);
  }
  const auto odd =
      open(model().f32_tensor("blk.0.attn_q.weight", {33, 1}, std::vector<float>(33, 1)));
  EXPECT_THAT(error_of([&] { odd->weight("model.layers.0.self_attn.q_proj.weight", 33, 1); }),
              AllOf(HasSubstr("attn_q.weight"), HasSubstr("no multiple of the head dimension")));
}

TEST(GgufWeights, MissingShapesAndNonFiniteValuesAreNamed) {
  std::string q4(2 * 18, '\1'), q5k(256 / 256 * 176, '\1');
  q4[18] = '\0';
  q4[19] = '\x7c';  // the scale of row 1: infinity
  q5k[1] = '\x7e';  // NaN
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto c = open(model()
                          .tensor("blk.0.ffn_up.weight", 2, {2, 32}, q4)
                          .tensor("blk.0.ffn_down.weight", 13, {1, 256}, q5k)
                          .f32_tensor("output_norm.weight", {2}, {1, nan})
                          .f32_tensor("blk.0.ffn_gate.weight", {1, 2}, {nan, 1}));
  const std::string up = "model.layers.0.mlp.up_proj.weight";
  EXPECT_THAT(error_of([&] { c->weight("model.no.weight", 1, 1); }),
              AllOf(HasSubstr("m.gguf"), HasSubstr("\"model.no.weight\" is missing")));
  EXPECT_THAT(error_of([&] { c->weight(up, 3, 32); }),
              AllOf(HasSubstr("ffn_up"), HasSubstr("expected [3, 32], got [2, 32]")));
  EXPECT_THAT(error_of([&] { c->vector(up, 64); }), HasSubstr("expected [64], got [2, 32]"));
  EXPECT_NO_THROW(dequantise(*c->weight(up, 2, 32), 0, 1));
  for (const auto& [name, n, k] : {std::tuple{"up", 2, 32}, {"down", 1, 256}, {"gate", 1, 2}}) {
    const auto w = c->weight(fmt::format("model.layers.0.mlp.{}_proj.weight", name), n, k);
    EXPECT_THAT(error_of([&, rows = n] { dequantise(*w, 0, rows); }),
                AllOf(HasSubstr(fmt::format("ffn_{}.weight", name)), HasSubstr("not finite")));
  }
  EXPECT_THAT(error_of([&] { c->vector("model.norm.weight", 2); }),
              AllOf(HasSubstr("output_norm"), HasSubstr("not finite")));
}

TEST(GgufGeneration, EveryEndOfTurnCounts) {
  const auto c = open(model()
                          .u32("tokenizer.ggml.eos_token_id", 2)
                          .u32("tokenizer.ggml.eot_token_id", 2)
                          .u32("tokenizer.ggml.bos_token_id", 1)
                          .strings("tokenizer.ggml.tokens",
                                   {"<|endoftext|>", "<|im_start|>", "x", "<|im_end|>", "</s>"})
                          .i32s("tokenizer.ggml.token_type", {3, 3, 1, 3, 1})
                          .f32("general.sampling.temp", 0.5f)
                          .u32("general.sampling.top_k", 20));
  const GenerationConfig& g = c->generation();
  EXPECT_THAT(g.eos, ElementsAre(2, 0, 3));  // "</s>" is plain text here
  EXPECT_EQ(g.bos, 1);
  EXPECT_EQ(g.temperature, 0.5);
  EXPECT_EQ(g.top_k, 20);
  EXPECT_FALSE(g.top_p.has_value());
  EXPECT_TRUE(g.do_sample);
  const auto none = open(model().u32("tokenizer.ggml.bos_token_id", UINT32_MAX));
  EXPECT_EQ(none->generation().bos, -1);
  EXPECT_FALSE(none->generation().do_sample);
  EXPECT_THAT(open_error(model().u32("tokenizer.ggml.eos_token_id", 1u << 31)),
              HasSubstr("eos_token_id"));
  EXPECT_THAT(open_error(model().f32("general.sampling.top_p", 2)), HasSubstr("top_p"));
}

GgufFile with_tokenizer(const std::string& pre = "smollm") {
  return model()
      .string("tokenizer.ggml.model", "gpt2")
      .string("tokenizer.ggml.pre", pre)
      .strings("tokenizer.ggml.tokens", {"a", "b", "ab", "<|im_end|>", "<tool>", "[PAD5]"})
      .i32s("tokenizer.ggml.token_type", {1, 1, 1, 3, 4, 5})
      .strings("tokenizer.ggml.merges", {"a b"})
      .u32("tokenizer.ggml.bos_token_id", 3)
      .u32("tokenizer.ggml.eos_token_id", 3);
}

TEST(GgufTokenizer, ReadsTokensMergesAndTheirKinds) {
  const auto spec = open(with_tokenizer())->tokenizer();
  ASSERT_TRUE(spec.has_value());
  EXPECT_THAT(spec->vocab, ElementsAre("a", "b", "ab", "", "", ""));
  EXPECT_THAT(spec->merges, ElementsAre(std::pair("a", "b")));
  ASSERT_EQ(spec->added.size(), 2u);
  EXPECT_EQ(spec->added[0].id, 3);
  EXPECT_EQ(spec->added[0].text, "<|im_end|>");
  EXPECT_TRUE(spec->added[0].special);
  EXPECT_EQ(spec->added[1].text, "<tool>");
  EXPECT_FALSE(spec->added[1].special);
  EXPECT_FALSE(spec->splits.empty());
  EXPECT_THAT(spec->prefix_ids, IsEmpty());
  const Tokenizer t(*spec);
  EXPECT_THAT(t.encode("ab<|im_end|>", true, true), ElementsAre(2, 3));
  EXPECT_FALSE(t.is_defined(5));
}

TEST(GgufTokenizer, SpecialIdsAroundTheText) {
  const auto ids = [](const GgufFile& f) {
    const auto spec = open(f)->tokenizer();
    return std::pair(spec->prefix_ids, spec->suffix_ids);
  };
  using Ids = std::vector<std::int32_t>;
  EXPECT_EQ(ids(with_tokenizer().boolean("tokenizer.ggml.add_bos_token", true)),
            std::pair(Ids{3}, Ids{}));
  EXPECT_EQ(ids(with_tokenizer("llama-bpe")), std::pair(Ids{3}, Ids{}));
  EXPECT_EQ(ids(with_tokenizer("llama-bpe").boolean("tokenizer.ggml.add_bos_token", false)),
            std::pair(Ids{}, Ids{}));
  EXPECT_EQ(ids(with_tokenizer().boolean("tokenizer.ggml.add_eos_token", true)),
            std::pair(Ids{}, Ids{3}));
}

TEST(GgufTokenizer, WhatIsWrongIsNamed) {
  const auto error = [](const GgufFile& f) { return error_of([&] { open(f)->tokenizer(); }); };
  const auto gpt2 = [] { return model().string("tokenizer.ggml.model", "gpt2"); };
  EXPECT_THAT(error(model().string("tokenizer.ggml.model", "llama")),
              AllOf(HasSubstr("m.gguf"), HasSubstr("the tokenizer \"llama\" is not supported")));
  EXPECT_THAT(error(with_tokenizer("klingon")), AllOf(HasSubstr("m.gguf"), HasSubstr("klingon")));
  EXPECT_THAT(error(gpt2()), HasSubstr("0 tokens"));
  EXPECT_THAT(
      error(
          gpt2().strings("tokenizer.ggml.tokens", {"a"}).i32s("tokenizer.ggml.token_type", {1, 1})),
      HasSubstr("1 tokens with 2 token types"));
  EXPECT_THAT(error(gpt2().strings("tokenizer.ggml.tokens", {"a", "\xff"})),
              HasSubstr("token 1 is not UTF-8"));
  for (const std::string merge : {"ab", " ab", "ab ", "\xff b"})
    EXPECT_THAT(error(gpt2()
                          .strings("tokenizer.ggml.tokens", {"a"})
                          .strings("tokenizer.ggml.merges", {merge})),
                HasSubstr("is not two tokens"));
  EXPECT_THAT(error(gpt2()
                        .string("tokenizer.ggml.pre", "smollm")
                        .strings("tokenizer.ggml.tokens", {"a"})
                        .boolean("tokenizer.ggml.add_bos_token", true)),
              HasSubstr("add_bos_token is set, but its id is missing"));
}

TEST(Gguf, ChatTemplateAndNamesInTheListing) {
  const auto c = open(model()
                          .string("tokenizer.chat_template", "{{ x }}")
                          .f32_tensor("blk.0.attn_norm.weight", {1}, {1})
                          .f32_tensor("blk.0.ffn_norm.weight", {1}, {1})
                          .f32_tensor("blk.0.attn_output.weight", {1, 1}, {1})
                          .f32_tensor("output_norm.weight", {1}, {1}));
  EXPECT_EQ(c->chat_template(), "{{ x }}");
  std::vector<std::string> names;
  for (const auto& t : c->tensors()) names.push_back(t.name);
  EXPECT_THAT(names,
              ElementsAre("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
                          "model.layers.0.post_attention_layernorm.weight",
                          "model.layers.0.self_attn.o_proj.weight", "model.norm.weight"));
  EXPECT_THAT(c->tensors()[0].shape, ElementsAre(3, 64));
  EXPECT_EQ(c->tensors()[0].bytes, 3u * 64 * 4);
  for (const std::string name :
       {"blk.00.attn_q.weight", "blk.x.attn_q.weight", "blk.0.attn_q", "blk.0.ffn_up.bias",
        "blk.0.attn_norm.bias", "output.bias", "blk.99999999999.attn_q.weight", "blk.0"})
    EXPECT_THAT(open_error(model().f32_tensor(name, {1}, {1})), HasSubstr("no place")) << name;
}

}  // namespace
}  // namespace nibble
