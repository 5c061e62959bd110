#include <gmock/gmock.h>

#include "base/error.h"
#include "text/tokenizer.h"
#include "text/tokenizer_cases.h"

namespace nibble {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

json minimal() {
  return json::parse(R"({"added_tokens": [{"id": 3, "content": "<s>", "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
    "post_processor": null, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}})");
}

TokenizerSpec read(const json& root) {
  return tokenizer_spec_from_json(root.dump(), "model/tokenizer.json");
}

// `patch` (a merge patch) makes the file unsupported or malformed: the error names it and `what`.
void expect_error(const char* patch, const char* what) {
  json root = minimal();
  root.merge_patch(json::parse(patch));
  EXPECT_THAT([&] { read(root); },
              ThrowsMessage<Error>(AllOf(HasSubstr("model/tokenizer.json"), HasSubstr(what))))
      << patch;
}

TEST(TokenizerJson, ReadsWhatTheFileSays) {
  json root = minimal();
  root["model"]["merges"] = {"a b"};
  root["model"]["ignore_merges"] = true;
  root["normalizer"] = json::parse(R"({"type": "Sequence", "normalizers": [{"type": "NFC"}]})");
  root["pre_tokenizer"] = json::parse(R"({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"String": "a.b"}, "behavior": "Removed", "invert": true},
    {"type": "Digits", "individual_digits": false},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})");
  const TokenizerSpec spec = read(root);
  EXPECT_THAT(spec.vocab, ElementsAre("a", "b", "ab"));
  EXPECT_THAT(spec.merges, ElementsAre(std::pair("a", "b")));
  EXPECT_TRUE(spec.nfc && spec.ignore_merges && !spec.add_prefix_space);
  ASSERT_EQ(spec.splits.size(), 2u);
  EXPECT_EQ(spec.splits[0].pattern, R"(a\.b)");
  EXPECT_FALSE(spec.splits[0].isolated);
  EXPECT_EQ(spec.splits[1].pattern, R"(\p{N}+)");
  ASSERT_EQ(spec.added.size(), 1u);
  EXPECT_TRUE(spec.added[0].special && !spec.added[0].normalized);
}

TEST(TokenizerJson, LaterPostProcessorsWrapEarlierOnes) {
  json root = minimal();
  root["post_processor"] = json::parse(R"({"type": "Sequence", "processors": [
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}, {"Sequence": {"id": "A"}}],
     "special_tokens": {"x": {"ids": [0, 1]}}},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "y"}}, {"Sequence": {"id": "A"}},
     {"SpecialToken": {"id": "y"}}], "special_tokens": {"y": {"ids": [3]}}}]})");
  const TokenizerSpec spec = read(root);
  EXPECT_THAT(spec.prefix_ids, ElementsAre(3, 0, 1));
  EXPECT_THAT(spec.suffix_ids, ElementsAre(3));
}

TEST(TokenizerJson, UnsupportedPartsAreNamed) {
  expect_error(R"({"model": {"type": "Unigram"}})", "model type \"Unigram\"");
  expect_error(R"({"model": {"byte_fallback": true}})", "model.byte_fallback");
  expect_error(R"({"model": {"dropout": 0.1}})", "model.dropout");
  expect_error(R"({"model": {"unk_token": "<unk>"}})", "model.unk_token \"<unk>\"");
  expect_error(R"({"model": {"continuing_subword_prefix": "##"}})", "continuing_subword_prefix");
  expect_error(R"({"model": {"end_of_word_suffix": "</w>"}})", "end_of_word_suffix");
  expect_error(R"({"normalizer": {"type": "NFKC"}})", "normalizer NFKC");
  expect_error(R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}]}})",
               "normalizer Prepend");
  expect_error(R"({"pre_tokenizer": null})", "without ByteLevel");
  expect_error(R"({"pre_tokenizer": {"type": "Metaspace"}})", "pre_tokenizer Metaspace");
  expect_error(R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "ByteLevel", "add_prefix_space": false}, {"type": "Digits"}]}})",
               "Digits after ByteLevel");
  expect_error(R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Digits"}, {"type": "ByteLevel", "add_prefix_space": true}]}})",
               "add_prefix_space");
  for (const char* behavior : {"Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"})
    expect_error(fmt::format(R"({{"pre_tokenizer": {{"type": "Split", "pattern": {{"Regex": "a"}},
      "behavior": "{}", "invert": false}}}})",
                             behavior)
                     .c_str(),
                 behavior);
  expect_error(R"({"post_processor": {"type": "BertProcessing"}})",
               "post_processor BertProcessing");
  expect_error(R"({"post_processor": {"type": "TemplateProcessing", "single": []}})",
               "TemplateProcessing");
  expect_error(R"({"decoder": {"type": "Fuse"}})", "decoder Fuse");
}

TEST(TokenizerJson, MalformedPartsAreNamed) {
  expect_error(R"({"model": null})", "'model' is missing");
  expect_error(R"({"model": {"vocab": null}})", "'vocab' is missing");
  expect_error(R"({"model": {"vocab": []}})", "'vocab' is missing or not of type object");
  expect_error(R"({"model": {"merges": null}})", "'merges'");
  expect_error(R"({"model": {"merges": ["a"]}})", "merge 0 'a'");
  expect_error(R"({"model": {"merges": ["a b c"]}})", "merge 0 'a b c'");
  expect_error(R"({"model": {"merges": [["a", "b"], ["a"]]}})", "merge 1");
  expect_error(R"({"model": {"merges": [["a", 1]]}})", "merge 0");
  expect_error(R"({"model": {"vocab": {"": 3}}})", "empty token");
  expect_error(R"({"model": {"vocab": {"c": 1}}})", "share the id 1");
  expect_error(R"({"model": {"vocab": {"c": -1}}})", "id of 'c'");
  expect_error(R"({"model": {"vocab": {"c": "1"}}})", "id of 'c'");
  expect_error(R"({"model": {"vocab": {"c": 1.5}}})", "id of 'c'");
  expect_error(R"({"model": {"vocab": {"c": 99999999999999999999}}})", "id of 'c'");
  expect_error(R"({"model": {"vocab": {"c": 2000000000}}})", "far beyond");
  expect_error(R"({"model": {"ignore_merges": 1}})", "'ignore_merges'");
  expect_error(R"({"added_tokens": {}})", "'added_tokens'");
  expect_error(R"({"added_tokens": [1]})", "'content'");
  expect_error(R"({"added_tokens": [{"content": "x"}]})", "id of 'x'");
  expect_error(R"({"added_tokens": [{"content": "x", "id": 2000000000}]})", "far beyond");
  expect_error(R"({"added_tokens": [{"content": "x", "id": 5, "special": "yes"}]})", "'special'");
  expect_error(R"({"pre_tokenizer": "ByteLevel"})", "'type'");
  expect_error(R"({"pre_tokenizer": {"type": "Split", "pattern": "a", "behavior": "Isolated"}})",
               "'pattern'");
  expect_error(R"({"post_processor": {"type": "TemplateProcessing", "single": [1]}})",
               "'SpecialToken'");
  expect_error(R"({"post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "x"}}], "special_tokens": {}}})",
               "'x'");
}

TEST(TokenizerJson, NotJson) {
  const std::string good = minimal().dump();
  for (std::size_t n = 0; n < good.size(); ++n)  // every truncation
    EXPECT_THAT([&] { tokenizer_spec_from_json(good.substr(0, n), "cut.json"); },
                ThrowsMessage<Error>(HasSubstr("cut.json")));
  for (const char* text : {"null", "[]", "1", "\"x\"", "{\"model\": \"\xff\"}"})
    EXPECT_THROW(tokenizer_spec_from_json(text, "x"), Error) << text;
}

TEST(TokenizerJson, DeepNestingIsAnError) {
  std::string steps = R"({"type": "ByteLevel"})";
  for (int i = 0; i < 20000; ++i) steps = R"({"type":"Sequence","pretokenizers":[)" + steps + "]}";
  const std::string text =
      R"({"model": {"vocab": {"a": 0}, "merges": []}, "pre_tokenizer": )" + steps + "}";
  EXPECT_THAT([&] { tokenizer_spec_from_json(text, "deep.json"); },
              ThrowsMessage<Error>(HasSubstr("nested more than 8 deep")));
}

}  // namespace
}  // namespace nibble
