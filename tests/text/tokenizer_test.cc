#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <rapidcheck/gtest.h>

#include <thread>

#include "base/error.h"
#include "text/bpe.h"
#include "text/tokenizer_cases.h"
#include "text/unicode.h"

namespace nibble {
namespace {

using Ids = std::vector<std::int32_t>;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

void expect_cases(const Tokenizer& t, const nlohmann::json& cases) {
  ASSERT_GT(cases.size(), 5u);
  for (const auto& c : cases) {
    const auto text = c["text"].get<std::string>();
    const auto ids = c["ids"].get<Ids>();
    ASSERT_EQ(t.encode(text, true, true), ids) << text;
    ASSERT_EQ(t.encode(text, false, true), c.value("plain", ids)) << text;
  }
}

class Committed : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(Committed, IdsEqualThoseOfTheReferenceLibrary) {
  const auto [name, pre] = GetParam();
  expect_cases(Tokenizer(committed_spec(name)), committed_cases(name));
}

TEST_P(Committed, GgufPreTokenizerNameMeansTheSame) {
  const auto [name, pre] = GetParam();
  TokenizerSpec spec = committed_spec(name);
  spec.splits = {{"wrong", false}};
  spec.nfc = !spec.nfc;
  spec.ignore_merges = !spec.ignore_merges;
  set_pretokenizer(spec, pre);
  expect_cases(Tokenizer(std::move(spec)), committed_cases(name));
}

TEST_P(Committed, AnyBytesRoundTrip) {
  TokenizerSpec spec = committed_spec(GetParam().first);
  spec.nfc = spec.add_prefix_space = false;
  std::erase_if(spec.added, [](const AddedToken& a) { return a.lstrip || a.rstrip; });
  const Tokenizer t(std::move(spec));
  const auto alphabet =
      rc::gen::oneOf(rc::gen::arbitrary<std::string>(),
                     rc::gen::container<std::string>(
                         rc::gen::elementOf(std::string("a \n\r\t'sé\xff\xc3\xe4\xbd\xf0\x9f"))),
                     rc::gen::element<std::string>("<|im_end|>", "<special>", "é", "\xe4\xbd\xa0",
                                                   "don't", "  1234 "));
  rc::check([&] {
    const auto parts = *rc::gen::container<std::vector<std::string>>(alphabet);
    std::string text;
    for (const auto& p : parts) text += p;
    RC_ASSERT(t.decode(t.encode(text, false, false), false) == text);
    RC_ASSERT(t.decode(t.encode(text, true, false), false) == text);
  });
}

INSTANTIATE_TEST_SUITE_P(
    Tokenizers, Committed,
    ::testing::Values(std::pair("gpt2", "gpt-2"), std::pair("llama3", "llama-bpe"),
                      std::pair("qwen2", "qwen2"), std::pair("qwen35", "qwen35"),
                      std::pair("smollm", "smollm"), std::pair("kjv", "qwen35")),
    [](const auto& i) { return std::string(i.param.first); });

// Bytes "a", "b", "c" and some of their merges; every other byte too.
TokenizerSpec abc() {
  TokenizerSpec spec;
  for (int b = 0; b < 256; ++b) spec.vocab.push_back(byte_alphabet(static_cast<std::uint8_t>(b)));
  for (const char* t : {"ab", "bc", "abc", "aa", "aaaa"}) spec.vocab.emplace_back(t);  // 256...
  spec.merges = {{"b", "c"}, {"a", "b"}, {"a", "bc"}, {"a", "a"}, {"aa", "aa"}};
  return spec;
}

// The definition: merge the pair of lowest rank, leftmost first, until there is none.
Ids naive_bpe(const TokenizerSpec& spec, const std::string& piece) {
  std::vector<std::string> parts;
  for (const char c : piece) parts.push_back(byte_alphabet(static_cast<std::uint8_t>(c)));
  for (;;) {
    std::size_t best = spec.merges.size(), at = 0;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i)
      for (std::size_t r = 0; r < best; ++r)
        if (spec.merges[r] == std::pair(parts[i], parts[i + 1])) best = r, at = i;
    if (best == spec.merges.size()) break;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  Ids ids;
  for (const auto& p : parts)
    ids.push_back(static_cast<std::int32_t>(std::find(spec.vocab.begin(), spec.vocab.end(), p) -
                                            spec.vocab.begin()));
  return ids;
}

RC_GTEST_PROP(Bpe, MergesByRankThenPlace, ()) {
  TokenizerSpec spec = abc();
  const auto order = *rc::gen::container<std::vector<int>>(5, rc::gen::inRange(0, 1000));
  for (std::size_t i = 5; i-- > 1;)  // any ranking, also those that training would not give
    std::swap(spec.merges[i], spec.merges[static_cast<std::size_t>(order[i]) % (i + 1)]);
  const auto piece = *rc::gen::container<std::string>(rc::gen::elementOf(std::string("aaabbcd")));
  RC_ASSERT(Tokenizer(spec).encode(piece, false, false) == naive_bpe(spec, piece));
}

TEST(Bpe, RepeatedPiecesAreTheSameFromTheCache) {
  TokenizerSpec spec = abc();
  spec.splits = {{"[a-c]+", true}};
  EXPECT_THAT(Tokenizer(spec).encode("abc abc aab", false, false),
              ElementsAre(258, ' ', 258, ' ', 'a', 256));
}

TEST(Tokenizer, InvalidBytesArePiecesOfTheirOwn) {
  TokenizerSpec spec = abc();
  spec.vocab.push_back(byte_alphabet(0xFF) + byte_alphabet(0xFE));
  spec.vocab.push_back(byte_alphabet(0xFE) + "a");
  spec.merges.emplace_back(byte_alphabet(0xFE), "a");
  spec.merges.emplace_back(byte_alphabet(0xFF), byte_alphabet(0xFE));
  EXPECT_THAT(Tokenizer(spec).encode("b\xff\xfe"
                                     "a",
                                     false, false),
              ElementsAre('b', 261, 'a'));
}

TEST(Tokenizer, AByteWithoutTokenGivesNothing) {
  TokenizerSpec spec = abc();
  spec.vocab['c'] = "";
  spec.merges = {{"a", "b"}};
  const Tokenizer t(spec);
  EXPECT_THAT(t.encode("acb", false, false), ElementsAre(256))
      << "its neighbours meet, as in tokenizers";
  EXPECT_FALSE(t.is_defined('c'));
  EXPECT_THAT([&] { t.token_bytes('c'); }, ThrowsMessage<Error>(HasSubstr("token id 99")));
}

TEST(Tokenizer, AnswersAboutIds) {
  TokenizerSpec spec = abc();
  spec.added = {{300, "<s>", true}, {301, "<t>", false}};
  spec.prefix_ids = {300};
  spec.suffix_ids = {301, 300};
  const Tokenizer t(std::move(spec));
  EXPECT_EQ(t.size(), 302);
  EXPECT_TRUE(t.is_special(300));
  EXPECT_FALSE(t.is_special(301));
  EXPECT_FALSE(t.is_defined(299) || t.is_defined(-1) || t.is_defined(302) || t.is_special(302));
  EXPECT_EQ(t.find("<s>"), 300);
  EXPECT_EQ(t.find("abc"), 258);
  EXPECT_EQ(t.find("Ġ"), ' ');
  EXPECT_EQ(t.find("nothing"), -1);
  EXPECT_THAT(t.encode("a", true, true), ElementsAre(300, 'a', 301, 300));
  EXPECT_THAT(t.encode("<t><s>", false, false), ElementsAre(301, '<', 's', '>'));
  EXPECT_EQ(t.decode(Ids{300, 'a', 301}, false), "<s>a<t>");
  EXPECT_EQ(t.decode(Ids{300, 'a', 301}, true), "a<t>");
  EXPECT_EQ(t.token_bytes(300, true), "");
  for (const std::int32_t id : {-1, 299, 302, INT32_MIN, INT32_MAX})
    EXPECT_THROW(t.decode(Ids{id}, true), Error) << id;
}

TEST(Tokenizer, ASpecialTokenNeverComesFromPlainText) {
  TokenizerSpec spec = abc();
  spec.ignore_merges = true;
  spec.vocab.push_back("ba");
  spec.added = {{261, "ba", true}};
  const Tokenizer t(spec);
  EXPECT_THAT(t.encode("ba", true, false), ElementsAre(261));
  EXPECT_THAT(t.encode("ba", false, false), ElementsAre('b', 'a'));
}

TEST(Tokenizer, InconsistentSpecsAreErrors) {
  const auto expect = [](auto change, const char* message) {
    TokenizerSpec spec = abc();
    change(spec);
    EXPECT_THAT([&] { Tokenizer t(std::move(spec)); }, ThrowsMessage<Error>(HasSubstr(message)));
  };
  expect([](auto& s) { s.merges.push_back({"a", "z"}); }, "merge 5 ('a' + 'z'): 'az'");
  expect([](auto& s) { s.merges.push_back({"zz", "a"}); }, "'zz' is not in the vocabulary");
  expect([](auto& s) { s.added = {{97, "x", true}}; }, "id 97, which belongs to 'a'");
  expect([](auto& s) { s.added = {{300, "x"}, {300, "y"}}; }, "id 300, which belongs to 'x'");
  expect([](auto& s) { s.added = {{-1, "x"}}; }, "id -1");
  expect([](auto& s) { s.added = {{INT32_MAX, "x"}}; }, "id 2147483647");
  expect([](auto& s) { s.added = {{300, "\xff"}}; }, "added token 300");
  expect([](auto& s) { s.added = {{300, std::string(2000, 'x')}}; }, "2000 bytes");
  expect([](auto& s) { s.prefix_ids = {261}; }, "token id 261");
  expect([](auto& s) { s.suffix_ids = {-5}; }, "token id -5");
  expect([](auto& s) { s.splits.assign(33, {"a", true}); }, "33 pre-tokenizer steps");
}

TEST(Tokenizer, UnknownPreTokenizerListsTheKnown) {
  TokenizerSpec spec;
  for (const char* name : {"mystery", "", " ", "qwen2 deepseek-r1-qwen", "llama"})
    EXPECT_THAT([&] { set_pretokenizer(spec, name); }, ThrowsMessage<Error>(HasSubstr("smollm")));
  for (const char* name : {"smollm", "llama-bpe", "llama3", "gpt-2", "gpt2", "qwen2", "qwen35"})
    EXPECT_NO_THROW(set_pretokenizer(spec, name)) << name;
}

TEST(Tokenizer, OneTokenizerServesManyThreads) {
  const Tokenizer t(committed_spec("qwen35"));
  const auto cases = committed_cases("qwen35");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { expect_cases(t, cases); });
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace nibble
