// Pre-tokenizer patterns: meaning, long runs, hostile patterns; and NFC.
#include <gmock/gmock.h>

#include <chrono>

#include "base/error.h"
#include "text/bpe.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::vector<std::string> split(const std::vector<TokenizerSpec::Split>& splits,
                               std::string_view text) {
  std::vector<std::string> pieces;
  Pretokenizer(splits).split(text, [&](std::string_view p) { pieces.emplace_back(p); });
  return pieces;
}

TEST(Pretokenizer, IsolatedAndRemoved) {
  EXPECT_THAT(split({{"[0-9]+", true}}, "ab12c3"), ElementsAre("ab", "12", "c", "3"));
  EXPECT_THAT(split({{"[0-9]+", false}}, "ab12c3"), ElementsAre("12", "3"));
  EXPECT_THAT(split({{"[0-9]", true}, {"b", true}}, "ab12b"), ElementsAre("a", "b", "1", "2", "b"));
  EXPECT_THAT(split({}, "ab"), ElementsAre("ab"));
  EXPECT_THAT(split({{"a", true}}, ""), ElementsAre());
}

TEST(Pretokenizer, EmptyMatchesCut) {
  EXPECT_THAT(split({{"", true}}, "aé你"), ElementsAre("a", "é", "你"));
  EXPECT_THAT(split({{"x*", true}}, "axxb"), ElementsAre("a", "xx", "b"));
  EXPECT_THAT(split({{"(?=(\\d{3})+(?!\\d))", true}}, "1234567"), ElementsAre("1", "234", "567"));
}

TEST(Pretokenizer, WhereTheTwoRegexLanguagesDiffer) {
  EXPECT_THAT(split({{"\\s", true}}, "a\u180E\u3000\u0085"),
              ElementsAre("a\u180E", "\u3000", "\u0085"));
  EXPECT_THAT(split({{"[^\\S\\n]+", true}}, "a \n b"), ElementsAre("a", " ", "\n", " ", "b"));
  EXPECT_THAT(split({{"\\p{Han}+", true}}, "漢、a"), ElementsAre("漢", "、a"))
      << "not the extensions";
  EXPECT_THAT(split({{"^a|b$", true}}, "aa\nab\nb"), ElementsAre("a", "a\n", "a", "b", "\n", "b"));
  EXPECT_THAT(split({{"a.", true}}, "a\rb a\n"), ElementsAre("a\r", "b a\n"));
  EXPECT_THAT(split({{"(?i:'s)", true}}, "x'S'ſ"), ElementsAre("x", "'S", "'ſ"));
  EXPECT_THAT(split({{"(?i:a(?-i:ss)b)", true}}, "AssBASSB"), ElementsAre("AssB", "ASSB"));
}

TEST(Pretokenizer, WhatMayDifferIsRefused) {
  for (const char* pattern : {"\\w",
                              "\\W",
                              "\\b",
                              "\\h",
                              "\\R",
                              "\\X",
                              "\\K",
                              "\\1",
                              "\\x41",
                              "\\v",
                              "\\z",
                              "\\pL",
                              "\\p{}",
                              "\\p{L",
                              "\\p{L&}",
                              "[[:alpha:]]",
                              "[a[b]]",
                              "[a&&b]",
                              "[]a]",
                              "[^]a]",
                              "[a",
                              "[",
                              "[a\\",
                              "\\",
                              "(?i)a",
                              "(?m:a)",
                              "(?x:a)",
                              "(*UTF)a",
                              "(*LIMIT_MATCH=1)a",
                              "(?R)",
                              "(?1)",
                              "(?C1)a",
                              "(?P<n>a)",
                              "(?<n>a)",
                              "(?#x)",
                              "a{,2}",
                              "a{2}?",
                              "a{2}+",
                              "a{2,3}+",
                              "a{",
                              "a{x}",
                              "(?i:ss)",
                              "(?i:Fl)",
                              "(?i:\\p{Lu})",
                              "(?i:é)",
                              "(?i:[é])",
                              "(?i:(a)st)"})
    EXPECT_THAT([&] { pcre2_pattern(pattern); },
                ThrowsMessage<Error>(HasSubstr("is not supported")))
        << pattern;
}

TEST(Pretokenizer, WhatDoesNotCompileIsAnError) {
  for (const char* pattern : {"(", ")", "*a", "a**", "[z-a]", "\\p{Nonsense}", "\\p{Zz}",
                              "(?<=a*)b", "\xff", "((((a{1000}){1000}){1000}){1000})"})
    EXPECT_THROW(split({{pattern, true}}, "abc"), Error) << pattern;
  EXPECT_THROW(split({{std::string(1 << 20, 'a'), true}}, "a"), Error);
  EXPECT_THROW(split({{std::string(5000, '(') + "a" + std::string(5000, ')'), true}}, "a"), Error);
}

TEST(Pretokenizer, HostilePatternsEndInAnError) {
  const auto expect_error = [](const char* pattern, const std::string& text) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_THAT([&] { split({{pattern, true}}, text); }, ThrowsMessage<Error>(HasSubstr(pattern)));
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30)) << pattern;
  };
  std::string text;  // the b that each pattern needs is there, but does not help
  for (int i = 0; i < 300; ++i) text += std::string(100, 'a') + "cb";
  for (const char* pattern : {"(a+)+b", "(a|a)*b", "(a*)*b", "a*a*a*a*a*b", "(?:a?){50}a{50}b",
                              "(?=(a+)+b)a", "(?:(?:a|aa)+)+b"})
    expect_error(pattern, text);
  for (const char* pattern : {"a*b", "a+a+z", "(?=a*z)", "(?!a*c)a", "\\s+$|\\p{L}+$x"})
    expect_error(pattern, std::string(200'000, 'a') + "cb");
}

TEST(Pretokenizer, RepeatedGroupsOutgrowNoStack) {
  const std::string text(2'000'000, 'a');
  try {  // either all of it is one piece, or an error says that it took too much
    EXPECT_EQ(split({{"(?:\\p{L}\\p{M}*)+", true}}, text).size(), 1u);
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("\\p{L}"));
  }
}

// Published patterns on long runs: right, and in about linear time.
TEST(Pretokenizer, LongRuns) {
  const std::size_t n = 10'000'000, some = 1'000'000;
  for (const char* pre : {"gpt-2", "llama-bpe", "qwen2", "qwen35", "smollm"}) {
    TokenizerSpec spec;
    set_pretokenizer(spec, pre);
    const Pretokenizer p(spec.splits);
    const auto count = [&](const std::string& text) {
      std::size_t pieces = 0, bytes = 0;
      p.split(text, [&](std::string_view s) {
        ++pieces;
        bytes += s.size();
      });
      EXPECT_EQ(bytes, text.size());
      return pieces;
    };
    EXPECT_EQ(count(std::string(n, ' ')), 1u) << pre;
    EXPECT_EQ(count(std::string(n, ' ') + "x"), 2u) << pre;
    EXPECT_EQ(count(std::string(n, 'a')), 1u) << pre;
    EXPECT_EQ(count(std::string(some, '=')), 1u) << pre;
    EXPECT_EQ(count(std::string(some, '\n')), 1u) << pre;
    EXPECT_EQ(count(std::string(some, ' ') + "\n"), 1u) << pre;
    std::string wide;
    while (wide.size() < some) wide += "\u00A0\u3000";
    const bool byte_level = spec.splits.back().pattern.starts_with("'s");  // only ' ' joins words
    EXPECT_EQ(count(wide + "x"), byte_level ? 3u : 2u) << pre;
  }
}

TEST(Bpe, OneLongWordTakesNoQuadraticTime) {
  TokenizerSpec spec;
  for (int b = 0; b < 256; ++b) spec.vocab.push_back(byte_alphabet(static_cast<std::uint8_t>(b)));
  std::string token = "a";
  while (token.size() < 64) {
    spec.merges.emplace_back(token, token);
    token += token;
    spec.vocab.push_back(token);
  }
  const Tokenizer t(spec);
  const auto start = std::chrono::steady_clock::now();
  const auto ids = t.encode(std::string((1 << 20) + 1, 'a'), false, false);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  ASSERT_EQ(ids.size(), (1u << 20) / 64 + 1);
  EXPECT_EQ(ids.front(), 261);
  EXPECT_EQ(ids.back(), 'a');
}

TEST(Nfc, ComposesAndReorders) {
  EXPECT_EQ(nfc("plain ascii"), "plain ascii");
  EXPECT_EQ(nfc("cafe\u0301 \u00E9"), "caf\u00E9 \u00E9");
  EXPECT_EQ(nfc("\u212B\u2126\u1E9B\u0323"), "\u00C5\u03A9\u1E9B\u0323");
  EXPECT_EQ(nfc("q\u0307\u0323"), "q\u0323\u0307");
  EXPECT_EQ(nfc("s\u0323\u0307 s\u0307\u0323"), "\u1E69 \u1E69");
  EXPECT_EQ(nfc("\u1112\u1161\u11AB\uAC00\u11A8"), "\uD55C\uAC01");
  EXPECT_EQ(nfc("\u0958\u2ADC\uFB1D"), "\u0915\u093C\u2ADD\u0338\u05D9\u05B4")
      << "excluded from composition";
  EXPECT_EQ(nfc("a\u0301b\u0301"), "\u00E1b\u0301");
  EXPECT_EQ(nfc(""), "");
}

TEST(Nfc, MarksInTheWrongOrderTakeNoQuadraticTime) {
  std::string marks = "a";
  for (int i = 0; i < 500'000; ++i) marks += "\u0301";
  for (int i = 0; i < 500'000; ++i) marks += "\u0316";
  const auto start = std::chrono::steady_clock::now();
  const std::string out = nfc(marks);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_TRUE(out.starts_with("\u00E1\u0316\u0316"));
  EXPECT_EQ(out.size(), marks.size() - 1) << "a and one accent became one character";
}

}  // namespace
}  // namespace nibble
