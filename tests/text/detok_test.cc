#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "base/error.h"
#include "text/bpe.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace nibble {
namespace {

// A token for each byte, ids 0 to 255; "<s>" (special) is 256, and 257 spells half of U+1F600.
Tokenizer bytes() {
  TokenizerSpec spec;
  for (int b = 0; b < 256; ++b) spec.vocab.push_back(byte_alphabet(static_cast<std::uint8_t>(b)));
  spec.added = {{256, "<s>", true}};
  spec.vocab.resize(257);
  spec.vocab.push_back(byte_alphabet(0xF0) + byte_alphabet(0x9F));
  return Tokenizer(std::move(spec));
}

std::string lossy(std::string_view text) {
  std::string out;
  append_lossy(out, text, true);
  return out;
}

TEST(Detokenizer, HoldsBackAnUnfinishedCharacter) {
  const Tokenizer t = bytes();
  Detokenizer d(t);
  EXPECT_EQ(d.push('a'), "a");
  EXPECT_EQ(d.push(257), "");
  EXPECT_EQ(d.push(0x98), "");
  EXPECT_EQ(d.push(0x80), "😀");
  EXPECT_EQ(d.flush(), "");
  EXPECT_EQ(d.push(0xE4), "");
  EXPECT_EQ(d.push('b'), "\uFFFDb") << "what can no longer be completed comes at once";
  EXPECT_EQ(d.push(257), "");
  EXPECT_EQ(d.flush(), "\uFFFD") << "one for a maximal subpart, not one a byte";
  EXPECT_EQ(d.flush(), "");
  EXPECT_THROW(d.push(258), Error);
}

TEST(Detokenizer, SpecialTokens) {
  const Tokenizer t = bytes();
  Detokenizer hidden(t), shown(t, false);
  EXPECT_EQ(hidden.push(256), "");
  EXPECT_EQ(shown.push(256), "<s>");
  EXPECT_EQ(hidden.push(0xC3), "");
  EXPECT_EQ(hidden.push(256), "") << "nothing in between";
  EXPECT_EQ(hidden.push(0xA9), "é");
}

// Unicode 3.9: the examples of tables 3-8 to 3-11, and what a decoder most often gets wrong.
TEST(Lossy, MaximalSubparts) {
  EXPECT_EQ(lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"
            "A");
  EXPECT_EQ(lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"
            "A");
  EXPECT_EQ(lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"
            "A\uFFFD\uFFFD"
            "B");
  EXPECT_EQ(lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD"
            "A");
  EXPECT_EQ(lossy("\xF4\x8F\xBF\xBF\xEF\xBF\xBF\xED\x9F\xBF"), "\U0010FFFF\uFFFF\uD7FF");
}

RC_GTEST_PROP(Detokenizer, PushesAndFlushGiveTheLossyText, ()) {
  static const Tokenizer t = bytes();
  const auto ids =
      *rc::gen::container<std::vector<std::int32_t>>(rc::gen::weightedOneOf<std::int32_t>(
          {{3, rc::gen::inRange(0, 258)},
           {3, rc::gen::element(0xF0, 0x9F, 0x98, 0x80, 0xE4, 0xBD, 0xA0, 0xED, 0xF4, 0x8F)},
           {1, rc::gen::just(257)}}));
  for (const bool skip : {true, false}) {
    Detokenizer d(t, skip);
    std::string text;
    for (const std::int32_t id : ids) {
      const std::string part = d.push(id);
      RC_ASSERT(is_valid_utf8(part));
      text += part;
    }
    text += d.flush();
    RC_ASSERT(text == lossy(t.decode(ids, skip)));
  }
}

RC_GTEST_PROP(Lossy, ValidTextIsUnchanged, (const std::vector<std::uint32_t>& codes)) {
  std::string text;
  for (const std::uint32_t c : codes)
    if (const char32_t code = c % 0x110000; code < 0xD800 || code > 0xDFFF) append_utf8(text, code);
  RC_ASSERT(is_valid_utf8(text));
  RC_ASSERT(lossy(text) == text);
}

}  // namespace
}  // namespace nibble
