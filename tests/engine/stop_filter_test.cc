#include "engine/stop_filter.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "base/error.h"

namespace nibble {
namespace {

TEST(StopFilter, HoldsBackWhatMayBecomeAStopString) {
  StopFilter f({"<end>"});
  EXPECT_EQ(f.push("abc<e"), "abc");
  EXPECT_EQ(f.push("n"), "");
  EXPECT_EQ(f.push("t"), "<ent");  // it did not
  EXPECT_EQ(f.push("<<end"), "<");
  EXPECT_FALSE(f.stopped());
  EXPECT_EQ(f.push(">tail"), "");
  EXPECT_TRUE(f.stopped());
  EXPECT_EQ(f.push("more") + f.flush(), "");
}

TEST(StopFilter, FlushGivesTheHeldPart) {
  StopFilter f({"abc"});
  EXPECT_EQ(f.push("xab"), "x");
  EXPECT_EQ(f.flush(), "ab");
}

TEST(StopFilter, TheOneCompleteFirstWins) {
  StopFilter f({"abcd", "bc"});
  EXPECT_EQ(f.push("xabcd"), "xa");
  StopFilter longest({"b", "ab"});
  EXPECT_EQ(longest.push("xab"), "x");
}

TEST(StopFilter, AnEmptyStopStringIsAUsageError) {
  EXPECT_THROW(StopFilter({"a", ""}), UsageError);
}

// Against the definition, for any cut of the text.
RC_GTEST_PROP(StopFilterProperty, CutsDoNotMatter, ()) {
  const auto letters = rc::gen::container<std::string>(rc::gen::element('a', 'b', 'c'));
  const std::string text = *letters;
  const auto stops =
      *rc::gen::resize(4, rc::gen::container<std::vector<std::string>>(rc::gen::nonEmpty(letters)));
  std::string expected = text;
  for (std::size_t end = 1; end <= text.size() && expected == text; ++end) {
    std::size_t cut = end;
    for (const auto& s : stops)
      if (s.size() <= end && text.compare(end - s.size(), s.size(), s) == 0)
        cut = std::min(cut, end - s.size());
    if (cut < end) {
      expected = text.substr(0, cut);
      break;
    }
  }
  StopFilter f(stops);
  std::string got;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t n = *rc::gen::inRange<std::size_t>(1, 4);
    got += f.push(std::string_view(text).substr(at, n));
    RC_ASSERT(expected.starts_with(got));  // nothing of a stop string, ever
    at += n;
  }
  RC_ASSERT(f.stopped() == (expected != text));
  RC_ASSERT(got + f.flush() == expected);
}

}  // namespace
}  // namespace nibble
