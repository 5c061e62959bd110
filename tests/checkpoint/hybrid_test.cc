// Checkpoints of Qwen3.5 and 3.6: configurations as published, parameter totals, experts stacked or
// one by one, what is left out, and GGUF files with what their converter changed undone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "checkpoint/gguf_blocks.h"
#include "checkpoint/json.h"
#include "checkpoint/random_checkpoint.h"
#include "gguf_sample.h"

namespace nibble {
namespace {

using test::error_of;
using test::GgufFile;
using test::raw;
using test::SafetensorsFile;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// config.json of Qwen3.6-27B, or of 35B-A3B; `fields` change text_config (null takes one away).
std::string published(bool moe, const std::string& fields = "{}") {
  Json text = Json::parse(moe ? R"({"hidden_size":2048,"num_hidden_layers":40,
      "num_attention_heads":16,"num_key_value_heads":2,"linear_num_value_heads":32,
      "num_experts":256,"num_experts_per_tok":8,"moe_intermediate_size":512,
      "shared_expert_intermediate_size":512,"model_type":"qwen3_5_moe_text"})"
                              : R"({"hidden_size":5120,"num_hidden_layers":64,
      "num_attention_heads":24,"num_key_value_heads":4,"linear_num_value_heads":48,
      "intermediate_size":17408,"model_type":"qwen3_5_text","output_gate_type":"swish"})");
  text.update(Json::parse(R"({"head_dim":256,"attn_output_gate":true,"attention_bias":false,
      "linear_num_key_heads":16,"linear_key_head_dim":128,"linear_value_head_dim":128,
      "linear_conv_kernel_dim":4,"full_attention_interval":4,"hidden_act":"silu",
      "rms_norm_eps":1e-6,"vocab_size":248320,"max_position_embeddings":262144,
      "eos_token_id":248044,"mtp_num_hidden_layers":1,"rope_parameters":{"rope_type":"default",
      "rope_theta":10000000,"partial_rotary_factor":0.25,"mrope_section":[11,11,10],
      "mrope_interleaved":true}})"));
  text.update(Json::parse(fields));
  const Json root = {
      {"architectures",
       {moe ? "Qwen3_5MoeForConditionalGeneration" : "Qwen3_5ForConditionalGeneration"}},
      {"model_type", moe ? "qwen3_5_moe" : "qwen3_5"},
      {"tie_word_embeddings", false},
      {"vision_config", {{"depth", 27}}},
      {"text_config", text}};
  return root.dump();
}
ModelConfig parse(bool moe, const std::string& fields = "{}") {
  return parse_config_json(published(moe, fields), "c.json");
}

TEST(HybridConfig, AsPublished) {
  for (const bool moe : {false, true}) {
    const ModelConfig c = parse(moe);
    EXPECT_EQ(c.architecture, moe ? "qwen3_5_moe" : "qwen3_5");
    EXPECT_EQ(c.attention_layers(), c.layers / 4);
    EXPECT_TRUE(c.attends[3] && !c.attends[0] && !c.attends[4]);
    EXPECT_EQ(c.rotary_dims(), 64);
    EXPECT_EQ(c.rope_theta, 1e7);
    EXPECT_EQ(c.delta.channels(), moe ? 8192 : 10240);
    EXPECT_EQ(c.moe.experts, moe ? 256 : 0);
    EXPECT_FALSE(c.tied_embedding);
    EXPECT_THAT(parse_generation_json("", published(moe), "c.json").eos, ElementsAre(248044));
    // The shapes that `nibble bench model --config` runs.
    const auto as = decoder_tensors(c),
               known = decoder_tensors(known_config(moe ? "qwen3.6-35b-a3b" : "qwen3.6-27b"));
    ASSERT_EQ(as.size(), known.size());
    for (std::size_t i = 0; i < as.size(); ++i)
      ASSERT_TRUE(as[i].name == known[i].name && as[i].shape == known[i].shape) << as[i].name;
  }
}

TEST(HybridConfig, ParameterTotalsOfThePublishedModels) {
  for (const bool moe : {false, true}) {
    std::int64_t all = 0, full = 0, linear = 0, tensors = 0;
    for (const TensorShape& t : decoder_tensors(parse(moe))) {
      all += t.parameters();
      if (t.name.starts_with("model.layers.3.")) full += t.parameters();
      if (t.name.starts_with("model.layers.0.")) linear += t.parameters();
      // A stored stack of experts is 2 tensors where this list has 3 an expert.
      tensors += t.name.find(".experts.") == std::string::npos;
    }
    EXPECT_EQ(all, moe ? 34660610688 : 26895998464);
    EXPECT_EQ(full, moe ? 836246016 : 372255232);
    EXPECT_EQ(linear, moe ? 842700992 : 383273184);
    EXPECT_EQ(tensors + (moe ? 40 * 2 : 0), moe ? 693 : 851);
  }
}

TEST(HybridConfig, WhatIsNotSupportedIsNamed) {
  const auto error = [](const char* fields, bool moe = false) {
    return error_of([&] { parse(moe, fields); });
  };
  EXPECT_THAT(error(R"({"attn_output_gate":false})"), HasSubstr("attn_output_gate"));
  EXPECT_THAT(error(R"({"output_gate_type":"sigmoid"})"), HasSubstr("\"sigmoid\""));
  EXPECT_THAT(error(R"({"linear_num_value_heads":40})"), HasSubstr("40 value heads"));
  EXPECT_THAT(error(R"({"linear_conv_kernel_dim":null})"), HasSubstr("linear_conv_kernel_dim"));
  EXPECT_THAT(error(R"({"layer_types":["full_attention"]})"), HasSubstr("a list of 64 names"));
  EXPECT_THAT(error(R"({"rope_parameters":{"rope_type":"yarn"}})"), HasSubstr("\"yarn\""));
  EXPECT_THAT(error(R"({"rope_parameters":{"partial_rotary_factor":0.001}})"),
              HasSubstr("RoPE over"));
  EXPECT_THAT(error(R"({"attention_bias":true})"), HasSubstr("attention_bias"));
  EXPECT_THAT(error(R"({"num_experts_per_tok":257})", true), HasSubstr("257 of 256"));
  EXPECT_THAT(error(R"({"shared_expert_intermediate_size":null})", true),
              HasSubstr("shared_expert_intermediate_size"));
}

// A MoE of one layer: hidden 4, 2 experts of 3, 1 key head, 2 value heads.
constexpr char kSmall[] = R"({"architectures":["Qwen3_5MoeForCausalLM"],"hidden_size":4,
    "num_hidden_layers":1,"num_attention_heads":1,"head_dim":8,"vocab_size":3,
    "linear_num_key_heads":1,"linear_num_value_heads":2,"linear_key_head_dim":2,
    "linear_value_head_dim":2,"linear_conv_kernel_dim":4,"num_experts":2,"num_experts_per_tok":1,
    "moe_intermediate_size":3,"shared_expert_intermediate_size":3})";

std::vector<float> iota(std::size_t n, float first = 1) {
  std::vector<float> v(n);
  std::iota(v.begin(), v.end(), first);
  return v;
}
std::vector<float> read(const Checkpoint& c, const std::string& name, std::int64_t n,
                        std::int64_t k) {
  return dequantise(*c.weight(name, n, k), 0, n);
}

TEST(HybridSafetensors, StackedExpertsAreThoseStoredOneByOne) {
  const std::string p = "layers.0.mlp.experts.";
  const std::vector<float> gate_up = iota(2 * 6 * 4), down = iota(2 * 4 * 3, 100);
  std::map<std::string, std::string> stacked = {
      {"config.json", kSmall},
      {"model.safetensors",
       SafetensorsFile()
           .add("model.language_model." + p + "gate_up_proj", "F32", {2, 6, 4}, raw(gate_up))
           .add("model.language_model." + p + "down_proj", "F32", {2, 4, 3}, raw(down))
           .build()}};
  SafetensorsFile one_by_one;
  const auto cut = [](const std::vector<float>& v, std::size_t at, std::size_t n) {
    return raw(std::vector<float>(v.begin() + static_cast<std::ptrdiff_t>(at),
                                  v.begin() + static_cast<std::ptrdiff_t>(at + n)));
  };
  for (std::size_t e = 0; e < 2; ++e) {
    const std::string x = "model." + p + std::to_string(e) + ".";
    one_by_one.add(x + "gate_proj.weight", "F32", {3, 4}, cut(gate_up, e * 24, 12));
    one_by_one.add(x + "up_proj.weight", "F32", {3, 4}, cut(gate_up, e * 24 + 12, 12));
    one_by_one.add(x + "down_proj.weight", "F32", {4, 3}, cut(down, e * 12, 12));
  }
  const std::map<std::string, std::string> apart = {{"config.json", kSmall},
                                                    {"model.safetensors", one_by_one.build()}};
  const auto a = open_hf(test::directory(stacked)), b = open_hf(test::directory(apart));
  ASSERT_EQ(a->tensors().size(), 6u);
  for (const TensorInfo& t : a->tensors()) {
    ASSERT_TRUE(b->has(t.name)) << t.name;
    EXPECT_EQ(read(*a, t.name, t.shape[0], t.shape[1]), read(*b, t.name, t.shape[0], t.shape[1]));
  }
  EXPECT_THAT(read(*a, "model.layers.0.mlp.experts.1.up_proj.weight", 3, 4), testing::Contains(48));

  stacked["model.safetensors"] =
      SafetensorsFile().add("model." + p + "gate_up_proj", "F32", {2, 5, 4}, raw(iota(40))).build();
  EXPECT_THAT(error_of([&] { open_hf(test::directory(stacked)); }), HasSubstr("gate_up_proj"));
  stacked["model.safetensors"] =
      SafetensorsFile().add("model." + p + "down_proj", "F32", {3, 4, 3}, raw(iota(36))).build();
  EXPECT_THAT(error_of([&] { open_hf(test::directory(stacked)); }),
              HasSubstr("expected 2 experts"));
}

TEST(HybridSafetensors, VisionAndPredictionAreCountedAndLeftOut) {
  const std::map<std::string, std::string> files = {
      {"config.json", kSmall},
      {"model.safetensors",
       SafetensorsFile()
           .add("model.visual.blocks.0.attn.qkv.weight", "BF16", {2, 1, 3}, std::string(12, 0))
           .add("model.visual.merger.norm.bias", "F32", {3}, raw(iota(3)))
           .add("mtp.layers.0.mlp.experts.gate_up_proj", "F32", {1, 2, 1}, raw(iota(2)))
           .add("model.language_model.layers.0.linear_attn.conv1d.weight", "F32", {8, 1, 4},
                raw(iota(32)))
           .add("model.language_model.layers.0.linear_attn.A_log", "BF16", {2},
                test::bfloats({-1, 2}))
           .build()}};
  const auto c = open_hf(test::directory(files));
  EXPECT_EQ(c->tensors().size(), 2u);
  const auto skipped = c->skipped();
  ASSERT_EQ(skipped.size(), 2u);
  for (const SkippedTensors& s : skipped) {
    const bool vision = s.what == "vision";
    EXPECT_EQ(s.tensors, vision ? 2u : 1u);
    EXPECT_EQ(s.parameters, vision ? 9u : 2u);
    EXPECT_EQ(s.bytes, vision ? 24u : 8u);
  }
  EXPECT_EQ(c->vector("model.layers.0.linear_attn.conv1d.weight", 32), iota(32));
  EXPECT_THAT(c->vector("model.layers.0.linear_attn.A_log", 2), ElementsAre(-1, 2));
  EXPECT_THAT(error_of([&] { c->vector("model.layers.0.linear_attn.conv1d.weight", 8); }),
              HasSubstr("[8, 1, 4]"));
}

// A qwen35moe file of one delta net layer and, uncounted, one of prediction: 2 key heads of 32, 6
// value heads of 32; 2 experts.
GgufFile hybrid_gguf() {
  GgufFile f = test::model("qwen35moe");
  const std::pair<const char*, std::uint32_t> keys[] = {{"ssm.conv_kernel", 2},
                                                        {"ssm.state_size", 32},
                                                        {"ssm.group_count", 2},
                                                        {"ssm.time_step_rank", 6},
                                                        {"ssm.inner_size", 192},
                                                        {"rope.dimension_count", 8},
                                                        {"expert_count", 2},
                                                        {"expert_used_count", 1},
                                                        {"expert_feed_forward_length", 3},
                                                        {"expert_shared_feed_forward_length", 3}};
  for (const auto& [key, value] : keys) f.u32(std::string("qwen35moe.") + key, value);
  return f;
}
// Hugging Face's value head h, at its place in the file: (h % 3) * 2 + h / 3.
constexpr int kPlace[6] = {0, 2, 4, 1, 3, 5};

TEST(HybridGguf, UndoesWhatTheConverterChanged) {
  const std::vector<float> rows = iota(320 * 64), taps = iota(320 * 2), heads = iota(6),
                           out = iota(64 * 192);
  GgufFile f = hybrid_gguf();
  f.f32_tensor("blk.0.attn_qkv.weight", {320, 64}, rows)
      .f32_tensor("blk.0.attn_gate.weight", {192, 64}, iota(192 * 64))
      .f32_tensor("blk.0.ssm_beta.weight", {6, 64}, iota(6 * 64))
      .f32_tensor("blk.0.ssm_a", {6}, {-1, -2, -3, -4, -5, -6})
      .f32_tensor("blk.0.ssm_dt.bias", {6}, heads)
      .f32_tensor("blk.0.ssm_conv1d.weight", {320, 2}, taps)
      .f32_tensor("blk.0.ssm_norm.weight", {32}, iota(32))
      .f32_tensor("blk.0.ssm_out.weight", {64, 192}, out)
      .f32_tensor("blk.0.attn_norm.weight", {64}, std::vector<float>(64, 1.5f))
      .f32_tensor("blk.0.post_attention_norm.weight", {64}, std::vector<float>(64, 0.75f))
      .f32_tensor("output_norm.weight", {64}, std::vector<float>(64, 1))
      .f32_tensor("blk.0.ffn_gate_inp_shexp.weight", {64}, iota(64))
      .f32_tensor("blk.0.ffn_gate_exps.weight", {2, 3, 64}, iota(384))
      .f32_tensor("blk.0.ffn_gate_up_exps.weight", {2, 6, 64}, iota(768));
  const auto c = test::open_model(f);
  const std::string p = "model.layers.0.", d = p + "linear_attn.";
  EXPECT_EQ(c->config().architecture, "qwen3_5_moe");
  EXPECT_EQ(c->config().delta.value_dim, 32);
  EXPECT_EQ(c->config().rotary_dims(), 8);

  const auto qkv = read(*c.checkpoint, d + "in_proj_qkv.weight", 320, 64);
  const auto conv = c->vector(d + "conv1d.weight", 640);
  const auto z = read(*c.checkpoint, d + "in_proj_z.weight", 192, 64);
  const auto b = read(*c.checkpoint, d + "in_proj_b.weight", 6, 64);
  const auto o = read(*c.checkpoint, d + "out_proj.weight", 64, 192);
  const auto a_log = c->vector(d + "A_log", 6), dt = c->vector(d + "dt_bias", 6);
  for (std::size_t r = 0; r < 128; ++r)  // q and k as they are
    EXPECT_TRUE(qkv[r * 64] == rows[r * 64] && conv[r * 2 + 1] == taps[r * 2 + 1]);
  for (std::size_t h = 0; h < 6; ++h) {
    const auto at = static_cast<std::size_t>(kPlace[h]);
    EXPECT_FLOAT_EQ(std::exp(a_log[h]), static_cast<float>(at + 1));
    EXPECT_EQ(dt[h], heads[at]);
    EXPECT_EQ(b[h * 64 + 5], static_cast<float>(at * 64 + 6));
    for (std::size_t i = 0; i < 32; ++i) {
      EXPECT_EQ(qkv[(128 + h * 32 + i) * 64 + 7], rows[(128 + at * 32 + i) * 64 + 7]);
      EXPECT_EQ(conv[(128 + h * 32 + i) * 2], taps[(128 + at * 32 + i) * 2]);
      EXPECT_EQ(z[(h * 32 + i) * 64], static_cast<float>((at * 32 + i) * 64 + 1));
      EXPECT_EQ(o[3 * 192 + h * 32 + i], out[3 * 192 + at * 32 + i]);
    }
  }
  EXPECT_EQ(c->vector(d + "norm.weight", 32), iota(32));  // not 1 + weight
  EXPECT_EQ(c->vector(p + "input_layernorm.weight", 64)[9], 0.5f);
  EXPECT_EQ(c->vector(p + "post_attention_layernorm.weight", 64)[9], -0.25f);
  EXPECT_EQ(c->vector("model.norm.weight", 64)[9], 0);
  EXPECT_EQ(read(*c.checkpoint, p + "mlp.shared_expert_gate.weight", 1, 64), iota(64));
  EXPECT_EQ(read(*c.checkpoint, p + "mlp.experts.1.gate_proj.weight", 3, 64), iota(192, 193));
  EXPECT_EQ(read(*c.checkpoint, p + "mlp.experts.1.up_proj.weight", 3, 64), iota(192, 577));
  EXPECT_THAT(c->skipped(), IsEmpty());
}

// Codes, scales and blocks of columns move together, without a new rounding.
TEST(HybridGguf, QuantisedColumnsKeepTheirBits) {
  std::string q4;  // Q4_0: a block is an fp16 scale and 32 codes
  for (int block = 0; block < 64 * 6; ++block) {
    test::put(q4, float_to_half(static_cast<float>(1 + block % 6)));
    for (int i = 0; i < 16; ++i) q4 += static_cast<char>(block * 31 + i * 7);
  }
  GgufFile f = hybrid_gguf();
  f.tensor("blk.0.ssm_out.weight", 2, {64, 192}, q4);
  const auto c = test::open_model(f);
  const auto w = c->weight("model.layers.0.linear_attn.out_proj.weight", 64, 192);
  EXPECT_EQ(w->format().type, WeightType::Int4);
  std::vector<float> stored(64 * 192);
  decode_blocks(*find_block_type(2), test::bytes_of(q4).data(), 64 * 6, stored.data());
  const auto got = dequantise(*w, 0, 64);
  for (std::size_t r = 0; r < 64; ++r)
    for (std::size_t h = 0; h < 6; ++h)
      for (std::size_t i = 0; i < 32; ++i)
        ASSERT_EQ(got[r * 192 + h * 32 + i],
                  stored[r * 192 + static_cast<std::size_t>(kPlace[h]) * 32 + i]);
  std::string q6(64 * 210, 0);
  GgufFile wide = hybrid_gguf();
  wide.tensor("blk.0.ssm_out.weight", 14, {64, 256}, q6);
  const auto k = test::open_model(wide);
  EXPECT_THAT(error_of([&] { k->weight("model.layers.0.linear_attn.out_proj.weight", 64, 256); }),
              HasSubstr("across heads"));
}

TEST(HybridGguf, PredictionIsCountedAndUnknownTensorsAreRefused) {
  GgufFile f = hybrid_gguf();
  f.u32("qwen35moe.nextn_predict_layers", 0);
  f.f32_tensor("blk.1.nextn.eh_proj.weight", {2, 3}, iota(6));
  const auto c = test::open_model(f);
  ASSERT_EQ(c->skipped().size(), 1u);
  EXPECT_EQ(c->skipped()[0].parameters, 6u);
  GgufFile odd = hybrid_gguf();
  odd.f32_tensor("blk.0.ssm_x.weight", {2, 3}, iota(6));
  EXPECT_THAT(test::open_error(odd), HasSubstr("\"blk.0.ssm_x.weight\""));
  GgufFile rates = hybrid_gguf();
  rates.f32_tensor("blk.0.ssm_a", {6}, iota(6));
  const auto r = test::open_model(rates);
  EXPECT_THAT(error_of([&] { r->vector("model.layers.0.linear_attn.A_log", 6); }),
              HasSubstr("below 0"));
  // Value heads that the file does not have are not looked for.
  GgufFile few = hybrid_gguf();
  few.f32_tensor("blk.0.attn_gate.weight", {190, 64}, iota(190 * 64));
  const auto c2 = test::open_model(few);
  EXPECT_THAT(error_of([&] { c2->weight("model.layers.0.linear_attn.in_proj_z.weight", 190, 64); }),
              HasSubstr("expected 192"));
  GgufFile experts = hybrid_gguf();
  experts.f32_tensor("blk.0.ffn_up_exps.weight", {3, 2, 32}, iota(192));
  EXPECT_THAT(test::open_error(experts), HasSubstr("expected 2 experts"));
}

TEST(RandomCheckpoint, IsTheSameEveryTimeAndHasTheShapes) {
  ModelConfig c = known_config("qwen3.5-0.8b");
  const auto a = random_checkpoint(c), b = random_checkpoint(c);
  const std::string name = "model.layers.3.self_attn.o_proj.weight";
  const auto w = read(*a, name, 1024, 2048);
  EXPECT_EQ(w, read(*b, name, 1024, 2048));
  double sum = 0, squares = 0;
  for (const float x : w) sum += x, squares += static_cast<double>(x) * x;
  EXPECT_NEAR(squares / 1024, 1, 0.1);  // a row's, so that outputs are as large as inputs
  EXPECT_THROW(a->weight(name, 1024, 1024), Error);
  EXPECT_THROW(a->weight("model.layers.0.self_attn.o_proj.weight", 1024, 2048), Error);
  EXPECT_THROW(known_config("qwen4"), UsageError);
}

}  // namespace
}  // namespace nibble
