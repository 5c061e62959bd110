#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <limits>
#include <thread>

#include "builders.h"

namespace nibble {
namespace {

using test::bfloats;
using test::error_of;
using test::halves;
using test::raw;
using test::SafetensorsFile;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kConfig[] =
    R"({"architectures":["LlamaForCausalLM"],"hidden_size":4,"num_hidden_layers":1,)"
    R"("num_attention_heads":2,"intermediate_size":8,"vocab_size":3,"tie_word_embeddings":)";

using Files = std::map<std::string, std::string>;

Files with_weights(const SafetensorsFile& weights, bool tied = false) {
  return {{"config.json", std::string(kConfig) + (tied ? "true}" : "false}")},
          {"model.safetensors", weights.build()}};
}

const std::vector<float> kValues = {0, 1, -2, 0.5f, 3, -0.25f, 8, 1};

TEST(HfCheckpoint, ReadsPlainMatricesExactly) {
  const Files files = with_weights(SafetensorsFile()
                                       .add("model.a.weight", "F32", {2, 4}, raw(kValues))
                                       .add("model.b.weight", "F16", {2, 4}, halves(kValues))
                                       .add("model.c.weight", "BF16", {2, 4}, bfloats(kValues)));
  const auto c = open_hf(test::directory(files));
  EXPECT_EQ(c->format(), "safetensors");
  const std::pair<const char*, WeightType> expected[] = {{"model.a.weight", WeightType::F32},
                                                         {"model.b.weight", WeightType::F16},
                                                         {"model.c.weight", WeightType::BF16}};
  for (const auto& [name, type] : expected) {
    const auto w = c->weight(name, 2, 4);
    EXPECT_EQ(w->format().type, type);
    EXPECT_EQ(w->name(), name);
    EXPECT_EQ(dequantise(*w, 0, 2), kValues);
    EXPECT_EQ(dequantise(*w, 1, 1), std::vector(kValues.begin() + 4, kValues.end()));
    w->release(0, 2);
    EXPECT_EQ(dequantise(*w, 0, 2), kValues);
  }
}

TEST(HfCheckpoint, EveryHalfWidensExactly) {
  std::string data;
  std::vector<float> expected;
  for (std::uint32_t h = 0; h < 65536; ++h) {
    if ((h & 0x7c00) == 0x7c00) continue;
    test::put(data, static_cast<std::uint16_t>(h));
    expected.push_back(half_to_float(static_cast<std::uint16_t>(h)));
  }
  const auto n = static_cast<std::int64_t>(expected.size());
  const Files files = with_weights(SafetensorsFile().add("norm.weight", "F16", {n}, data));
  const auto got = open_hf(test::directory(files))->vector("model.norm.weight", n);
  EXPECT_EQ(std::memcmp(got.data(), expected.data(), expected.size() * 4), 0);
}

TEST(HfCheckpoint, NamesComeWithAnyPrefix) {
  for (const std::string prefix :
       {"", "model.", "language_model.model.", "model.language_model.", "language_model."}) {
    const Files files = with_weights(
        SafetensorsFile().add(prefix + "layers.0.x.weight", "F32", {1}, raw<float>({7})));
    const auto c = open_hf(test::directory(files));
    EXPECT_TRUE(c->has("model.layers.0.x.weight")) << prefix;
    EXPECT_THAT(c->vector("model.layers.0.x.weight", 1), ElementsAre(7));
  }
  const Files twice = with_weights(SafetensorsFile()
                                       .add("norm.weight", "F32", {1}, raw<float>({7}))
                                       .add("model.norm.weight", "F32", {1}, raw<float>({8})));
  EXPECT_THAT(error_of([&] { open_hf(test::directory(twice)); }),
              AllOf(HasSubstr("\"model.norm.weight\""), HasSubstr("twice")));
}

TEST(HfCheckpoint, ATiedHeadIsHidden) {
  const auto weights =
      SafetensorsFile().add("lm_head.weight", "F32", {3, 4}, std::string(48, '\0'));
  for (const bool tied : {false, true}) {
    const Files files = with_weights(weights, tied);
    const auto c = open_hf(test::directory(files));
    EXPECT_EQ(c->has("lm_head.weight"), !tied);
    EXPECT_EQ(c->config().tied_embedding, tied);
    EXPECT_EQ(c->tensors()[0].note.empty(), !tied);
    if (tied)
      EXPECT_THROW(c->weight("lm_head.weight", 3, 4), Error);
    else
      EXPECT_NO_THROW(c->weight("lm_head.weight", 3, 4));
  }
}

TEST(HfCheckpoint, WhatIsMissingOrOfAnotherShapeIsNamed) {
  const Files files = with_weights(SafetensorsFile()
                                       .add("m.weight", "F32", {2, 4}, raw(kValues))
                                       .add("i.weight", "I32", {2, 4}, std::string(32, 'x')));
  const auto c = open_hf(test::directory(files));
  EXPECT_THAT(error_of([&] { c->weight("no.weight", 2, 4); }),
              AllOf(HasSubstr("dir"), HasSubstr("\"no.weight\" is missing")));
  EXPECT_THAT(
      error_of([&] { c->weight("m.weight", 4, 2); }),
      AllOf(HasSubstr("\"m.weight\""), HasSubstr("expected [4, 2]"), HasSubstr("got [2, 4]")));
  EXPECT_THAT(error_of([&] { c->vector("m.weight", 8); }),
              AllOf(HasSubstr("\"m.weight\": expected [8], got [2, 4]")));
  EXPECT_THAT(error_of([&] { c->weight("i.weight", 2, 4); }), HasSubstr("dtype I32"));
}

TEST(HfCheckpoint, NonFiniteValuesAreNamedInWhicheverRow) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    auto values = kValues;
    values[5] = bad;
    const Files files = with_weights(SafetensorsFile()
                                         .add("a.weight", "F32", {2, 4}, raw(values))
                                         .add("b.weight", "F16", {2, 4}, halves(values))
                                         .add("c.weight", "BF16", {2, 4}, bfloats(values))
                                         .add("v", "BF16", {8}, bfloats(values)));
    const auto c = open_hf(test::directory(files));
    for (const std::string name : {"a.weight", "b.weight", "c.weight"}) {
      const auto w = c->weight(name, 2, 4);
      EXPECT_NO_THROW(dequantise(*w, 0, 1)) << name;
      EXPECT_THAT(error_of([&] { dequantise(*w, 1, 1); }),
                  AllOf(HasSubstr("\"" + name + "\""), HasSubstr("not finite")));
    }
    EXPECT_THAT(error_of([&] { c->vector("v", 8); }), HasSubstr("\"v\": a value is not finite"));
  }
}

TEST(HfCheckpoint, ReadsFromSeveralThreads) {
  std::vector<float> values(64 * 256);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const Files files =
      with_weights(SafetensorsFile().add("m.weight", "F32", {64, 256}, raw(values)));
  const auto w =
      open_hf(test::directory(files))->weight("m.weight", 64, 256);  // outlives its parent
  std::vector<std::thread> threads;
  std::vector<int> good(4);
  for (std::size_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      const auto row = static_cast<std::int64_t>(16 * t);
      const auto got = dequantise(*w, row, 16);
      good[t] = std::equal(got.begin(), got.end(), values.begin() + 256 * row);
    });
  for (auto& t : threads) t.join();
  EXPECT_THAT(good, ElementsAre(1, 1, 1, 1));
}

class Shards : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_.write("config.json", std::string(kConfig) + "false}");
    dir_.write("one.safetensors",
               SafetensorsFile().add("model.a.weight", "F32", {2, 4}, raw(kValues)).build());
    dir_.write("two.safetensors",
               SafetensorsFile().add("model.norm.weight", "F32", {1}, raw<float>({5})).build());
  }
  void index(const std::string& map) {
    dir_.write("model.safetensors.index.json", R"({"metadata":{},"weight_map":)" + map + "}");
  }
  std::string error() {
    return error_of([&] { Checkpoint::open(dir_.path()); });
  }
  test::TempDir dir_;
};

TEST_F(Shards, ReadTogether) {
  index(R"({"model.a.weight":"one.safetensors","model.norm.weight":"two.safetensors"})");
  const auto c = Checkpoint::open(dir_.path());
  EXPECT_EQ(dequantise(*c->weight("model.a.weight", 2, 4), 0, 2), kValues);
  EXPECT_THAT(c->vector("model.norm.weight", 1), ElementsAre(5));
  c->weight("model.a.weight", 2, 4)->release(0, 2);
  EXPECT_EQ(dequantise(*c->weight("model.a.weight", 2, 4), 0, 2), kValues);
}

TEST_F(Shards, AMissingOneIsNamed) {
  index(R"({"model.a.weight":"one.safetensors","b":"three.safetensors"})");
  EXPECT_THAT(error(), AllOf(HasSubstr("three.safetensors"), HasSubstr("missing")));
}

TEST_F(Shards, ATensorThatIsNotWhereTheIndexSaysIsNamed) {
  index(R"({"model.a.weight":"two.safetensors"})");
  EXPECT_THAT(error(), AllOf(HasSubstr("two.safetensors"), HasSubstr("\"model.a.weight\"")));
}

TEST_F(Shards, NamesThatLeaveTheDirectoryAreRefused) {
  std::filesystem::create_directory(dir_.path() / "sub");
  for (const std::string name :
       {"../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors",
        "..\\\\one.safetensors", "one.safetensors\\u0000.safetensors", "one", ""}) {
    index(R"({"model.a.weight":")" + name + "\"}");
    EXPECT_THAT(error(), HasSubstr("is not the name of a .safetensors file")) << name;
  }
  index(R"({"model.a.weight":["one.safetensors"]})");
  EXPECT_THAT(error(), HasSubstr("is not the name of a .safetensors file"));
}

TEST_F(Shards, AnIndexWithoutMapOrWithoutSyntaxIsAnError) {
  index("[]");
  EXPECT_THAT(error(), AllOf(HasSubstr("index.json"), HasSubstr("weight_map")));
  index("{");
  EXPECT_THAT(error(), AllOf(HasSubstr("index.json"), HasSubstr("not valid JSON")));
  index(R"({"a":"one.safetensors","a":"two.safetensors"})");
  EXPECT_THAT(error(), HasSubstr("given twice"));
}

TEST_F(Shards, NoWeightsAtAll) { EXPECT_THAT(error(), HasSubstr("neither model.safetensors nor")); }

TEST(Open, SaysWhatIsNeededInstead) {
  const test::TempDir dir;
  const auto error = [&](const std::filesystem::path& p) {
    return error_of([&] { Checkpoint::open(p); });
  };
  EXPECT_THAT(error(dir.path() / "none"), HasSubstr("no such file or directory"));
  EXPECT_THAT(error(dir.path()), HasSubstr("no config.json"));
  dir.write("m.gguf", "GGUF");
  EXPECT_THAT(error(dir.path()),
              AllOf(HasSubstr("give the GGUF file itself"), HasSubstr("m.gguf")));
  EXPECT_THAT(error(dir.path() / "m.gguf"), HasSubstr("truncated"));
  dir.write("m.safetensors", "123456789");
  EXPECT_THAT(error(dir.path() / "m.safetensors"), HasSubstr("give the directory instead"));
  ASSERT_EQ(::mkfifo((dir.path() / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(error(dir.path() / "pipe"), HasSubstr("neither a file nor a directory"));
  dir.write("empty", "");
  EXPECT_THAT(error(dir.path() / "empty"), HasSubstr("neither a GGUF file nor a model directory"));
}

TEST(HfCheckpoint, AChatTemplateFileWinsOverTheConfigurations) {
  Files files = with_weights(SafetensorsFile().add("a", "U8", {1}, "x"));
  const auto chat = [&] { return open_hf(test::directory(files))->chat_template(); };
  EXPECT_EQ(chat(), std::nullopt);
  files["tokenizer_config.json"] = R"({"chat_template":null})";
  EXPECT_EQ(chat(), std::nullopt);
  files["tokenizer_config.json"] = R"({"chat_template":"one"})";
  EXPECT_EQ(chat(), "one");
  files["tokenizer_config.json"] =
      R"({"chat_template":[{"name":"rag","template":"r"},{"name":"default","template":"two"}]})";
  EXPECT_EQ(chat(), "two");
  files["chat_template.jinja"] = "three";
  EXPECT_EQ(chat(), "three");
  files.erase("chat_template.jinja");
  files["tokenizer_config.json"] = R"({"chat_template":5})";
  EXPECT_THAT(error_of([&] { chat(); }), HasSubstr("tokenizer_config.json"));
}

TEST(HfCheckpoint, TokenizerConfigDecidesAboutBos) {
  Files files = with_weights(SafetensorsFile().add("a", "U8", {1}, "x"));
  const auto prefix = [&] { return open_hf(test::directory(files))->tokenizer()->prefix_ids; };
  EXPECT_FALSE(open_hf(test::directory(files))->tokenizer().has_value());
  files["tokenizer.json"] =
      R"({"added_tokens":[{"id":2,"content":"<s>","special":true,"lstrip":false,"rstrip":false,)"
      R"("single_word":false,"normalized":false}],"normalizer":null,)"
      R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},)"
      R"("post_processor":null,"decoder":{"type":"ByteLevel"},)"
      R"("model":{"type":"BPE","vocab":{"a":0,"b":1,"<s>":2},"merges":[]}})";
  EXPECT_THAT(prefix(), ElementsAre());
  files["tokenizer_config.json"] = R"({"add_bos_token":true,"bos_token":"<s>"})";
  EXPECT_THAT(prefix(), ElementsAre(2));
  files["tokenizer_config.json"] = R"({"add_bos_token":true,"bos_token":{"content":"<s>"}})";
  EXPECT_THAT(prefix(), ElementsAre(2));
  files["tokenizer_config.json"] = R"({"add_bos_token":false,"bos_token":"<s>"})";
  EXPECT_THAT(prefix(), ElementsAre());
  files["tokenizer_config.json"] = R"({"add_bos_token":true,"bos_token":"<none>"})";
  EXPECT_THAT(error_of([&] { prefix(); }), HasSubstr("\"<none>\""));
}

}  // namespace
}  // namespace nibble
