#include "checkpoint/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "builders.h"
#include "checkpoint/json.h"
#include "checkpoint/names.h"

namespace nibble {
namespace {

using test::error_of;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A Llama's config.json; `fields` replace or extend the usual ones (null takes one away).
std::string config(const std::string& fields = "{}", const std::string& arch = "LlamaForCausalLM") {
  Json j = Json::parse(
      R"({"hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,)"
      R"("intermediate_size":128,"vocab_size":320,"max_position_embeddings":2048,)"
      R"("rms_norm_eps":1e-5,"hidden_act":"silu"})");
  j["architectures"] = {arch};
  j.update(Json::parse(fields));
  return j.dump();
}
ModelConfig parse(const std::string& fields = "{}", const std::string& arch = "LlamaForCausalLM") {
  return parse_config_json(config(fields, arch), "c.json");
}
std::string error(const std::string& fields, const std::string& arch = "LlamaForCausalLM") {
  return error_of([&] { parse(fields, arch); });
}

TEST(Config, ReadsALlama) {
  const ModelConfig m = parse();
  EXPECT_EQ(m.architecture, "llama");
  EXPECT_EQ(m.hidden, 64);
  EXPECT_EQ(m.layers, 2);
  EXPECT_EQ(m.heads, 4);
  EXPECT_EQ(m.kv_heads, 2);
  EXPECT_EQ(m.head_dim, 16);
  EXPECT_EQ(m.intermediate, 128);
  EXPECT_EQ(m.vocab, 320);
  EXPECT_EQ(m.max_position, 2048);
  EXPECT_EQ(m.rms_eps, 1e-5);
  EXPECT_EQ(m.rope_theta, 10000);
  EXPECT_FALSE(m.rope_scaling.has_value());
  EXPECT_FALSE(m.tied_embedding || m.qkv_bias || m.o_bias || m.qk_norm);
}

TEST(Config, Variants) {
  EXPECT_EQ(parse(R"({"num_key_value_heads":null})").kv_heads, 4);
  EXPECT_EQ(parse(R"({"head_dim":48})").head_dim, 48);
  EXPECT_EQ(parse(R"({"head_dim":null})").head_dim, 16);
  EXPECT_TRUE(parse(R"({"tie_word_embeddings":true})").tied_embedding);
  const ModelConfig biased = parse(R"({"attention_bias":true})");
  EXPECT_TRUE(biased.qkv_bias && biased.o_bias);
  const ModelConfig qwen2 = parse("{}", "Qwen2ForCausalLM");
  EXPECT_EQ(qwen2.architecture, "qwen2");
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.qk_norm);
  const ModelConfig qwen3 = parse("{}", "Qwen3ForCausalLM");
  EXPECT_EQ(qwen3.architecture, "qwen3");
  EXPECT_TRUE(!qwen3.qkv_bias && !qwen3.o_bias && qwen3.qk_norm);
  EXPECT_EQ(parse("{}", "MistralForCausalLM").architecture, "llama");
  EXPECT_EQ(parse(R"({"architectures":null,"model_type":"qwen2"})").architecture, "qwen2");
}

TEST(Config, RopeOfEitherGeneration) {
  EXPECT_EQ(parse(R"({"rope_theta":500000})").rope_theta, 500000);
  EXPECT_EQ(parse(R"({"rope_scaling":null})").rope_theta, 10000);
  EXPECT_EQ(parse(R"({"rope_parameters":{"rope_theta":1e6,"rope_type":"default"}})").rope_theta,
            1e6);
  const std::string llama3 =
      R"({"rope_theta":500000,"factor":32,"low_freq_factor":1,"high_freq_factor":4,)"
      R"("original_max_position_embeddings":8192,)";
  for (const auto& [key, type] : {std::pair{"rope_scaling", "rope_type"},
                                  {"rope_scaling", "type"},
                                  {"rope_parameters", "rope_type"}}) {
    const auto m = parse(fmt::format("{{\"{}\":{}\"{}\":\"llama3\"}}}}", key, llama3, type));
    EXPECT_EQ(m.rope_theta, 500000);
    ASSERT_TRUE(m.rope_scaling.has_value());
    EXPECT_EQ(m.rope_scaling->factor, 32);
    EXPECT_EQ(m.rope_scaling->low_freq_factor, 1);
    EXPECT_EQ(m.rope_scaling->high_freq_factor, 4);
    EXPECT_EQ(m.rope_scaling->original_max_position, 8192);
  }
  for (const std::string type : {"yarn", "linear", "dynamic", "longrope"})
    EXPECT_THAT(error(R"({"rope_scaling":{"type":")" + type + R"(","factor":2}})"),
                HasSubstr("\"" + type + "\""));
  EXPECT_THAT(error(R"({"rope_scaling":{"rope_type":"llama3","factor":8}})"),
              HasSubstr("\"low_freq_factor\" is missing"));
  EXPECT_THAT(error(R"({"rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":4,)"
                    R"("high_freq_factor":4,"original_max_position_embeddings":1}})"),
              HasSubstr("high_freq_factor"));
  EXPECT_THAT(error(R"({"partial_rotary_factor":0.5})"), HasSubstr("partial_rotary_factor"));
  EXPECT_THAT(error(R"({"rope_parameters":{"partial_rotary_factor":0.25}})"),
              HasSubstr("partial_rotary_factor"));
}

TEST(Config, SlidingWindowsAreRefusedWhereTheyMatter) {
  const std::string window = R"({"sliding_window":1024})";
  EXPECT_THAT(error(window, "MistralForCausalLM"), HasSubstr("sliding-window attention"));
  EXPECT_NO_THROW(parse(R"({"sliding_window":null})", "MistralForCausalLM"));
  EXPECT_NO_THROW(parse(R"({"sliding_window":2048})", "MistralForCausalLM"));
  EXPECT_NO_THROW(parse(window, "Qwen2ForCausalLM"));  // off unless use_sliding_window says so
  EXPECT_NO_THROW(
      parse(R"({"sliding_window":1024,"use_sliding_window":false})", "MistralForCausalLM"));
  EXPECT_THAT(error(R"({"sliding_window":1024,"use_sliding_window":true})", "Qwen2ForCausalLM"),
              HasSubstr("sliding-window attention"));
  EXPECT_THAT(
      error(R"({"sliding_window":1024,"layer_types":["full_attention","sliding_attention"]})"),
      HasSubstr("sliding-window attention"));
  EXPECT_THAT(error(R"({"layer_types":["linear_attention"]})"), HasSubstr("\"linear_attention\""));
  EXPECT_NO_THROW(parse(R"({"layer_types":["full_attention","full_attention"]})"));
}

TEST(Config, WhatIsNotSupportedIsNamed) {
  EXPECT_THAT(error("{}", "Qwen3NextForCausalLM"),
              AllOf(HasSubstr("c.json"), HasSubstr("\"Qwen3NextForCausalLM\""),
                    HasSubstr("LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM")));
  EXPECT_THAT(error(R"({"architectures":null,"model_type":"mamba"})"), HasSubstr("\"mamba\""));
  EXPECT_THAT(error(R"({"hidden_act":"gelu"})"), HasSubstr("\"gelu\""));
  EXPECT_THAT(error(R"({"mlp_bias":true})"), HasSubstr("mlp_bias"));
}

TEST(Config, ImpossibleFieldsAreNamed) {
  for (const std::string key : {"hidden_size", "num_hidden_layers", "num_attention_heads",
                                "intermediate_size", "vocab_size"}) {
    for (const std::string value :
         {"0", "-1", "1.5", "1e3", "\"7\"", "18446744073709551615", "9223372036854775807",
          "99999999999999999999", "[]", "{}", "true"})
      EXPECT_THAT(error("{\"" + key + "\":" + value + "}"),
                  AllOf(HasSubstr("c.json: \"" + key + "\" must be an integer")))
          << value;
    EXPECT_THAT(error("{\"" + key + "\":null}"), HasSubstr("\"" + key + "\" is missing"));
  }
  EXPECT_THAT(error(R"({"num_key_value_heads":3})"), HasSubstr("no multiple of 3 KV heads"));
  EXPECT_THAT(error(R"({"num_key_value_heads":8})"), HasSubstr("num_key_value_heads"));
  EXPECT_THAT(error(R"({"head_dim":15})"), HasSubstr("head dimension of 15"));
  EXPECT_THAT(error(R"({"hidden_size":2})"), HasSubstr("head dimension of 0"));
  EXPECT_THAT(error(R"({"num_attention_heads":65536,"head_dim":4096})"), HasSubstr("too many"));
  EXPECT_THAT(error(R"({"rms_norm_eps":-1})"), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(error(R"({"rope_theta":0})"), HasSubstr("rope_theta"));
  EXPECT_THAT(error(R"({"rope_scaling":3})"), HasSubstr("rope_scaling"));
  EXPECT_THAT(error(R"({"tie_word_embeddings":1})"), HasSubstr("tie_word_embeddings"));
}

TEST(Json, MalformedTextIsAnErrorNamingTheFile) {
  for (const std::string text : {"", "{", "[]", "5", "{\"a\":}", "{} {}", "{\"a\":\"\xff\"}",
                                 "{\"a\":1,\"a\":2}", "{\"o\":{\"a\":1,\"a\":2}}", "{\"a\":1e999}"})
    EXPECT_THAT(error_of([&] { parse_json_object(text, "c.json"); }), HasSubstr("c.json: "))
        << text;
  EXPECT_NO_THROW(parse_json_object(R"({"a":{"b":1},"c":{"b":1},"d":[{"b":1},{"b":1}]})", "c"));
}

TEST(Json, DepthIsBounded) {
  const auto nest = [](std::size_t depth) {
    return "{\"a\":" + std::string(depth, '[') + std::string(depth, ']') + "}";
  };
  EXPECT_NO_THROW(parse_json_object(nest(63), "c"));
  EXPECT_THAT(error_of([&] { parse_json_object(nest(64), "c"); }), HasSubstr("nested deeper"));
  EXPECT_THAT(error_of([&] { parse_json_object("{\"a\":" + std::string(1 << 20, '['), "c"); }),
              HasSubstr("nested deeper"));
}

TEST(Json, SizeIsBounded) {
  const std::string text = "{\"a\":\"" + std::string(32 << 20, 'x') + "\"}";
  EXPECT_THAT(error_of([&] { parse_json_object(text, "c.json"); }), HasSubstr("c.json: 33554440"));
}

TEST(Generation, UnitesEveryEndOfTurnId) {
  const auto g = parse_generation_json(
      R"({"eos_token_id":[2,0],"bos_token_id":1,"temperature":0.2,"top_k":20,"top_p":0.9,)"
      R"("min_p":0.05,"repetition_penalty":1.1,"do_sample":true})",
      R"({"eos_token_id":5,"bos_token_id":7})", "g.json");
  EXPECT_THAT(g.eos, ElementsAre(2, 0, 5));
  EXPECT_EQ(g.bos, 1);
  EXPECT_EQ(g.temperature, 0.2);
  EXPECT_EQ(g.top_k, 20);
  EXPECT_EQ(g.top_p, 0.9);
  EXPECT_EQ(g.min_p, 0.05);
  EXPECT_EQ(g.repetition_penalty, 1.1);
  EXPECT_TRUE(g.do_sample);
}

TEST(Generation, FilesMayBeAbsentAndFieldsNull) {
  const auto g = parse_generation_json("", R"({"eos_token_id":[3,3],"bos_token_id":4})", "g");
  EXPECT_THAT(g.eos, ElementsAre(3));
  EXPECT_EQ(g.bos, 4);
  EXPECT_FALSE(g.temperature || g.top_k || g.top_p || g.min_p || g.repetition_penalty ||
               g.do_sample);
  const auto none = parse_generation_json(R"({"eos_token_id":null,"temperature":null})", "{}", "g");
  EXPECT_THAT(none.eos, IsEmpty());
  EXPECT_EQ(none.bos, -1);
  EXPECT_FALSE(none.temperature.has_value());
}

TEST(Generation, ImpossibleValuesAreNamed) {
  for (const auto& [key, value] : {std::pair{"eos_token_id", "-1"},
                                   {"eos_token_id", "[1,\"2\"]"},
                                   {"eos_token_id", "4294967296"},
                                   {"eos_token_id", "[[1]]"},
                                   {"bos_token_id", "1.5"},
                                   {"temperature", "-0.1"},
                                   {"temperature", "\"hot\""},
                                   {"top_p", "1.5"},
                                   {"min_p", "-1"},
                                   {"repetition_penalty", "0"},
                                   {"top_k", "-1"},
                                   {"top_k", "0.5"},
                                   {"do_sample", "1"}})
    EXPECT_THAT(error_of([k = key, v = value] {
                  parse_generation_json(fmt::format("{{\"{}\":{}}}", k, v), "", "g.json");
                }),
                AllOf(HasSubstr("g.json"), HasSubstr(key)))
        << value;
}

TEST(Names, QuotingIsSafeToPrint) {
  EXPECT_EQ(quote("a.b"), "\"a.b\"");
  EXPECT_EQ(quote("\x1b[2J\n"), "\"\\x1b[2J\\x0a\"");
  EXPECT_EQ(quote("\xc3\xa9"), "\"\xc3\xa9\"");
  EXPECT_EQ(quote("\xc3"), "\"\\xc3\"");
  std::string accents;
  for (int i = 0; i < 200; ++i) accents += "\xe2\x82\xac";  // 3 bytes each: a cut may not split one
  accents.insert(0, "xx");
  EXPECT_EQ(quote(accents), "\"" + accents.substr(0, 119) + "...\"");
}

TEST(Names, LayerNumbers) {
  EXPECT_EQ(layer_number("0"), 0);
  EXPECT_EQ(layer_number("31"), 31);
  for (const char* bad : {"", "01", "-1", "1x", "100000", " 1"})
    EXPECT_EQ(layer_number(bad), -1) << bad;
}

}  // namespace
}  // namespace nibble
