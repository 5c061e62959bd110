// What quantize makes of a GGUF file's metadata, read back by the readers of such files.
#include "checkpoint/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <numbers>

#include "builders.h"
#include "text/bpe.h"

namespace nibble {
namespace {

using test::error_of;
using testing::HasSubstr;

ModelConfig sample(const std::string& architecture) {
  ModelConfig m;
  m.architecture = architecture;
  m.hidden = 576, m.layers = 30, m.heads = 9, m.kv_heads = 3, m.head_dim = 80,
  m.intermediate = 1536;
  m.vocab = 49152, m.max_position = 8192;
  m.rms_eps = 1e-5f;  // as GGUF stores it
  m.rope_theta = 100000;
  m.qkv_bias = architecture == "qwen2";
  m.qk_norm = architecture == "qwen3";
  return m;
}

TEST(ConfigJson, ComesBackTheSame) {
  for (const std::string architecture : {"llama", "qwen2", "qwen3"})
    for (const bool tied : {true, false}) {
      ModelConfig m = sample(architecture);
      m.tied_embedding = tied;
      if (architecture == "llama") m.qkv_bias = m.o_bias = tied;
      const std::string json = config_json(m, {}, DType::BF16);
      const ModelConfig b = parse_config_json(json, "c");
      EXPECT_EQ(b.architecture, architecture);
      EXPECT_EQ(std::tie(b.hidden, b.layers, b.heads, b.kv_heads, b.head_dim, b.intermediate,
                         b.vocab, b.max_position),
                std::tie(m.hidden, m.layers, m.heads, m.kv_heads, m.head_dim, m.intermediate,
                         m.vocab, m.max_position));
      EXPECT_EQ(std::tie(b.rope_theta, b.tied_embedding, b.qkv_bias, b.o_bias, b.qk_norm),
                std::tie(m.rope_theta, m.tied_embedding, m.qkv_bias, m.o_bias, m.qk_norm));
      EXPECT_EQ(b.rms_eps, 1e-5);
      EXPECT_EQ(static_cast<float>(b.rms_eps), static_cast<float>(m.rms_eps));
      EXPECT_THAT(json, HasSubstr("1e-05"));
      EXPECT_THAT(json, HasSubstr("bfloat16"));
    }
}

TEST(ConfigJson, KeepsEndAndBeginOfText) {
  GenerationConfig g;
  g.eos = {2, 7};
  g.bos = 1;
  const GenerationConfig b =
      parse_generation_json("", config_json(sample("llama"), g, DType::F16), "c");
  EXPECT_THAT(b.eos, testing::ElementsAre(2));
  EXPECT_EQ(b.bos, 1);
}

std::vector<float> llama3_factors(const ModelConfig& m, double factor, double low, double high,
                                  double original) {
  std::vector<float> f;
  for (std::int64_t i = 0; i < m.head_dim / 2; ++i) {
    const double wavelength =
        2 * std::numbers::pi *
        std::pow(m.rope_theta, 2.0 * static_cast<double>(i) / static_cast<double>(m.head_dim));
    const double smooth = (original / wavelength - low) / (high - low);
    f.push_back(static_cast<float>(wavelength < original / high ? 1
                                   : wavelength > original / low
                                       ? factor
                                       : 1 / ((1 - smooth) / factor + smooth)));
  }
  return f;
}

TEST(ConfigJson, RecoversLlama3Scaling) {
  ModelConfig m = sample("llama");
  m.rope_theta = 500000;
  for (const double factor : {8.0, 32.0}) {
    m.rope_factors = llama3_factors(m, factor, 1, 4, 8192);
    const ModelConfig b = parse_config_json(config_json(m, {}, DType::F16), "c");
    ASSERT_TRUE(b.rope_scaling.has_value());
    EXPECT_EQ(b.rope_scaling->factor, factor);
    EXPECT_EQ(b.rope_scaling->low_freq_factor, 1);
    EXPECT_EQ(b.rope_scaling->high_freq_factor, 4);
    EXPECT_EQ(b.rope_scaling->original_max_position, 8192);
  }
  m.rope_factors = llama3_factors(m, 8, 1, 4, 4096);
  EXPECT_THAT(error_of([&] { config_json(m, {}, DType::F16); }),
              HasSubstr("RoPE factors that config.json cannot express"));
}

TEST(ConfigJson, RefusesWhatItCannotExpress) {
  ModelConfig m = sample("llama");
  m.qkv_bias = true;
  EXPECT_THAT(error_of([&] { config_json(m, {}, DType::F16); }), HasSubstr("biases"));
  m = sample("qwen2");
  m.qkv_bias = false;
  EXPECT_THAT(error_of([&] { config_json(m, {}, DType::F16); }), HasSubstr("biases"));
  m = sample("llama");
  m.qk_norm = true;
  EXPECT_THAT(error_of([&] { config_json(m, {}, DType::F16); }), HasSubstr("q/k norms"));
}

// All 256 bytes, a few merges, two added tokens, one of them between the others, a hole.
TokenizerSpec byte_spec(const std::string& pre) {
  TokenizerSpec s;
  s.vocab.emplace_back();  // id 0: the special token
  for (int b = 0; b < 256; ++b) s.vocab.push_back(byte_alphabet(static_cast<std::uint8_t>(b)));
  for (const auto& [a, b] : {std::pair{"a", "b"}, {"ab", "c"}, {"\u0120", "a"}, {"1", "2"}}) {
    s.merges.emplace_back(a, b);
    s.vocab.push_back(std::string(a) + b);
  }
  s.vocab.emplace_back();  // a hole
  s.added = {
      {0, "<|end|>", true, false, false, false, false},
      {static_cast<std::int32_t>(s.vocab.size()), "<think>", false, false, true, false, false}};
  set_pretokenizer(s, pre);
  return s;
}

RC_GTEST_PROP(TokenizerJson, GivesTheSameIds, ()) {
  const auto pre =
      *rc::gen::element<std::string>("smollm", "gpt-2", "llama-bpe", "qwen2", "qwen35");
  TokenizerSpec spec = byte_spec(pre);
  if (*rc::gen::arbitrary<bool>()) spec.prefix_ids = {0};
  if (*rc::gen::arbitrary<bool>()) spec.suffix_ids = {0, 5};
  const TokenizerSpec back = tokenizer_spec_from_json(tokenizer_json(spec), "t");
  RC_ASSERT(back.ignore_merges == spec.ignore_merges);
  RC_ASSERT(back.nfc == spec.nfc);
  RC_ASSERT(back.merges == spec.merges);
  const Tokenizer before(spec), after(back);
  RC_ASSERT(after.size() == before.size());
  for (std::int32_t id = 0; id < before.size(); ++id) {
    RC_ASSERT(after.is_defined(id) == before.is_defined(id));
    RC_ASSERT(after.is_special(id) == before.is_special(id));
  }
  const auto parts = *rc::gen::container<std::vector<std::string>>(
      rc::gen::oneOf(rc::gen::element<std::string>("abc", " a", "12", "<|end|>", "<think>",
                                                   "e\u0301", "\n\n", "  ", "'S"),
                     rc::gen::arbitrary<std::string>()));
  std::string text;
  for (const auto& p : parts) text += p;
  for (const bool special : {false, true})
    RC_ASSERT(after.encode(text, special, special) == before.encode(text, special, special));
}

TEST(TokenizerJson, RefusesTwoIdsForOneToken) {
  TokenizerSpec s = byte_spec("gpt-2");
  s.vocab.push_back("ab");
  EXPECT_THAT(error_of([&] { tokenizer_json(s); }), HasSubstr("has two ids"));
}

}  // namespace
}  // namespace nibble
