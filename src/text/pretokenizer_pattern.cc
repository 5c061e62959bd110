// tokenizer.json writes patterns for Oniguruma (Ruby syntax). The two engines agree on a large
// common part; what differs is respelled here, and what is rare and differs is refused, so that
// no pattern runs with another meaning:
//   \s        PCRE2's also takes U+180E: respelled as the property White_Space
//   \p{Han}   PCRE2's means script extensions: respelled as \p{sc:Han}
//   \w \b \h  other sets; (?m) another flag; a{2}+ another meaning; [a[b]] [a&&b] set operations,
//             literal in PCRE2: refused, like references, recursion, callouts and verbs
//   (?i:ss)   Oniguruma's also takes U+00DF, and treats properties otherwise: in caseless groups
//             only ASCII is accepted, without the pairs that fold to one character
// MULTILINE, which Ruby always has, is a compile option.
#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "text/pretokenizer.h"
#include "text/unicode.h"

namespace nibble {
namespace {

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (at_ < in_.size()) {
      switch (in_[at_]) {
        case '\\':
          escape();
          break;
        case '[':
          set();
          break;
        case '(':
          group();
          break;
        case ')':
          leave();
          break;
        case '{':
          counts();
          break;
        default:
          literal();
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::size_t begin) const {
    std::string near;
    append_lossy(near, in_.substr(begin, 8), false);
    fail("pre-tokenizer pattern '{}': '{}' at byte {} is not supported", in_, near, begin);
  }
  char peek(std::size_t ahead) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  void copy(std::size_t n) {
    out_ += in_.substr(at_, n);
    at_ += n;
  }

  bool caseless() const { return !groups_.empty() && groups_.back(); }

  void literal() {
    if (caseless()) {
      const char pair[] = {lower(peek(0)), lower(peek(1)), '\0'};
      for (const std::string_view folds : {"ss", "st", "ff", "fi", "fl"})
        if (pair == folds) refuse(at_);
      ascii_if_caseless();
    }
    copy(1);
  }
  void ascii_if_caseless() const {
    if (caseless() && static_cast<unsigned char>(in_[at_]) >= 0x80) refuse(at_);
  }
  static char lower(char c) {
    return static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }

  void escape() {
    const char c = peek(1);
    if (c == 's' || c == 'S') {
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      at_ += 2;
    } else if (c == 'p' || c == 'P') {
      property();
    } else if (c != '\0' && (std::string_view("dDrntf").find(c) != std::string_view::npos ||
                             c == ' ' || std::ispunct(static_cast<unsigned char>(c)))) {
      copy(2);
    } else {
      refuse(at_);
    }
  }

  void property() {  // \p{L}, \p{Lu}, \p{^L}, \p{Han}
    const std::size_t close = in_.find('}', at_);
    if (peek(2) != '{' || close == std::string_view::npos || caseless()) refuse(at_);
    std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    out_ += in_.substr(at_, 3);
    if (name.starts_with('^')) {
      out_ += '^';
      name.remove_prefix(1);
    }
    const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) || c == '_';
    });
    if (name.empty() || !plain) refuse(at_);
    if (name.size() > 2) out_ += "sc:";  // one or two letters: a general category
    out_ += name;
    out_ += '}';
    at_ = close + 1;
  }

  void set() {
    const std::size_t begin = at_;
    copy(peek(1) == '^' ? 2 : 1);
    if (peek(0) == ']') refuse(begin);
    while (peek(0) != ']') {
      if (at_ == in_.size() || peek(0) == '[' || (peek(0) == '&' && peek(1) == '&')) refuse(begin);
      if (peek(0) == '\\') {
        escape();
      } else {
        ascii_if_caseless();
        copy(1);
      }
    }
    copy(1);
  }

  void group() {
    if (peek(1) == '*') refuse(at_);
    for (const std::string_view open :
         {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?-i:", "("}) {
      if (!in_.substr(at_).starts_with(open)) continue;
      if (open == "(" && peek(1) == '?') break;
      groups_.push_back(open == "(?i:" || (caseless() && open != "(?-i:"));
      return copy(open.size());
    }
    refuse(at_);
  }
  void leave() {
    if (!groups_.empty()) groups_.pop_back();
    copy(1);
  }

  void counts() {  // {2} {2,} {2,3}, and lazy forms of the last two
    const std::size_t begin = at_, close = in_.find('}', at_);
    const auto digits = [&] {
      const std::size_t from = at_;
      while (std::isdigit(static_cast<unsigned char>(peek(0)))) copy(1);
      return at_ > from;
    };
    copy(1);
    if (!digits()) refuse(begin);
    const bool range = peek(0) == ',';
    if (range) {
      copy(1);
      digits();
    }
    if (at_ != close) refuse(begin);
    copy(1);
    if (peek(0) == '+' || (peek(0) == '?' && !range)) refuse(begin);
  }

  std::string_view in_;
  std::size_t at_ = 0;
  std::string out_;
  std::vector<bool> groups_;  // open ones: caseless?
};

}  // namespace

std::string pcre2_pattern(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace nibble
