#include "checkpoint/gguf_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gguf_sample.h"

namespace nibble {
namespace {

using test::error_of;
using test::GgufFile;
using test::model;
using test::open_error;
using test::open_model;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(GgufConfig, ReadsTheMetadata) {
  const auto c = open_model(model());
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
  const auto c =
      open_model(model("qwen3")
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
  const auto c = open_model(model().f32_tensor("rope_freqs.weight", {16}, factors));
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
  EXPECT_NO_THROW(open_model(model()
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

TEST(GgufGeneration, EveryEndOfTurnCounts) {
  const auto c = open_model(model()
                                .u32("tokenizer.ggml.eos_token_id", 2)
                                .u32("tokenizer.ggml.eot_token_id", 2)
                                .u32("tokenizer.ggml.bos_token_id", 1)
                                .strings("tokenizer.ggml.tokens", {"<|endoftext|>", "<|im_start|>",
                                                                   "x", "<|im_end|>", "</s>"})
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
  const auto none = open_model(model().u32("tokenizer.ggml.bos_token_id", UINT32_MAX));
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
  const auto spec = open_model(with_tokenizer())->tokenizer();
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
    const auto spec = open_model(f)->tokenizer();
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
  const auto error = [](const GgufFile& f) {
    return error_of([&] { open_model(f)->tokenizer(); });
  };
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
  const auto c = open_model(model()
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
