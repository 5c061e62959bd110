#include "text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "text/jinja/run.h"
#include "text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

constexpr std::size_t npos = std::string_view::npos;

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}
bool is_digit_char(char c) { return c >= '0' && c <= '9'; }

// \r\n and \r become \n; one newline at the very end goes.
std::string normalize(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r')
      out += source[i];
    else if (i + 1 == source.size() || source[i + 1] != '\n')
      out += '\n';
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize(source)), s_(source_) {}

  std::vector<Token> run() {
    while (pos_ < s_.size()) {
      const std::size_t open = next_open();
      if (open == npos) {
        data(s_.substr(pos_));
        advance(s_.size());
        break;
      }
      const char kind = s_[open + 1];
      const char sign = open + 2 < s_.size() && (s_[open + 2] == '-' || s_[open + 2] == '+')
                            ? s_[open + 2]
                            : '\0';
      data(before_tag(s_.substr(pos_, open - pos_), sign, kind == '{'));
      advance(open);
      tag_line_ = line_;
      if (kind == '%' && raw()) continue;
      advance(open + 2 + (sign != '\0' ? 1 : 0));
      if (kind == '#')
        comment();
      else
        inside(kind == '%');
    }
    push(Token::Type::End);
    return std::move(tokens_);
  }

 private:
  std::size_t next_open() const {
    for (std::size_t i = s_.find('{', pos_); i != npos; i = s_.find('{', i + 1)) {
      if (i + 1 < s_.size() && (s_[i + 1] == '%' || s_[i + 1] == '{' || s_[i + 1] == '#')) return i;
    }
    return npos;
  }

  // What stays of the text before a tag: `-` strips all white space; a block or comment alone on
  // its line loses its indentation (lstrip_blocks) unless it says `+`.
  std::string_view before_tag(std::string_view text, char sign, bool prints) const {
    if (sign == '-') return strip(text, false, true);
    if (sign == '+' || prints) return text;
    const std::size_t newline = text.rfind('\n');
    const std::size_t start = newline == npos ? 0 : newline + 1;
    if (start == 0 && pos_ > 0 && s_[pos_ - 1] != '\n') return text;
    if (strip(text.substr(start), true, false).empty()) return text.substr(0, start);
    return text;
  }

  void push(Token::Type type, std::string_view text = {}) {
    tokens_.push_back({type, line_, std::string(text), 0, 0});
  }
  void data(std::string_view text) {
    if (!text.empty()) push(Token::Type::Data, text);
  }
  void advance(std::size_t to) {
    line_ += static_cast<int>(std::count(s_.begin() + static_cast<std::ptrdiff_t>(pos_),
                                         s_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    pos_ = to;
  }
  std::size_t skip_space(std::size_t at) const {
    return s_.size() - strip(s_.substr(at), true, false).size();
  }
  bool at(std::size_t place, std::string_view what) const {
    return place <= s_.size() && s_.substr(place).starts_with(what);
  }

  // Moves past the end of a tag at `place` (its sign, if it has one) when one is there. A block
  // or comment takes the newline after it along (trim_blocks) unless it says `+`.
  bool end_tag(std::size_t place, std::string_view close, bool trims) {
    if (at(place, "-") && at(place + 1, close)) {
      advance(skip_space(place + 3));
    } else if (trims && at(place, "+") && at(place + 1, close)) {
      advance(place + 3);
    } else if (at(place, close)) {
      advance(place + 2 + (trims && at(place + 2, "\n") ? 1 : 0));
    } else {
      return false;
    }
    return true;
  }

  void comment() {
    const std::size_t close = s_.find("#}", pos_);
    if (close == npos) fail_at(tag_line_, "missing end of comment tag");
    const bool sign = close > pos_ && (s_[close - 1] == '-' || s_[close - 1] == '+');
    end_tag(close - (sign ? 1 : 0), "#}", true);
  }

  // `{% word %}` at `place`, with any signs: the place of its end sign, or npos.
  std::size_t bare_tag(std::size_t place, std::string_view word) const {
    if (!at(place, "{%")) return npos;
    place += 2;
    if (at(place, "-") || at(place, "+")) ++place;
    place = skip_space(std::min(place, s_.size()));
    return at(place, word) ? skip_space(place + word.size()) : npos;
  }

  // {% raw %}...{% endraw %} at pos_; false if something else is there.
  bool raw() {
    const std::size_t end = bare_tag(pos_, "raw");
    if (end == npos || at(end, "+") || !(at(end, "%}") || at(end, "-%}"))) return false;
    end_tag(end, "%}", false);
    for (std::size_t i = s_.find("{%", pos_); i != npos; i = s_.find("{%", i + 1)) {
      const std::size_t close = bare_tag(i, "endraw");
      if (close == npos) continue;
      const std::size_t from = pos_;
      const char sign = i + 2 < s_.size() ? s_[i + 2] : '\0';
      const std::string_view text = before_tag(s_.substr(from, i - from), sign, false);
      const int line = line_;
      if (!end_tag(close, "%}", true)) continue;
      if (!text.empty()) tokens_.push_back({Token::Type::Data, line, std::string(text), 0, 0});
      return true;
    }
    fail_at(tag_line_, "missing end of raw directive");
  }

  void inside(bool block) {
    push(block ? Token::Type::TagBegin : Token::Type::PrintBegin);
    std::string open;  // brackets: an end tag inside them is not one
    while (pos_ < s_.size()) {
      const int line = line_;
      if (open.empty() && end_tag(pos_, block ? "%}" : "}}", block)) {
        tokens_.push_back({block ? Token::Type::TagEnd : Token::Type::PrintEnd, line, {}, 0, 0});
        return;
      }
      const char c = s_[pos_];
      if (const std::size_t next = skip_space(pos_); next != pos_) {
        advance(next);
      } else if (is_digit_char(c)) {
        number();
      } else if (is_name_char(c)) {
        std::size_t end = pos_;
        while (end < s_.size() && is_name_char(s_[end])) ++end;
        push(Token::Type::Name, s_.substr(pos_, end - pos_));
        advance(end);
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        op(open);
      }
    }
    fail_at(tag_line_, "missing '{}' of the tag that begins here", block ? "%}" : "}}");
  }

  void op(std::string& open) {
    static constexpr std::array<std::string_view, 27> ops = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]",
        "(",  ")",  "{",  "}",  ">",  "<",  "=", ".", ":", "|", ",", ";", ""};
    const auto found =
        std::find_if(ops.begin(), ops.end() - 1, [&](std::string_view o) { return at(pos_, o); });
    if (found == ops.end() - 1) {
      const Char c = char_at(s_, pos_);
      fail_at(line_, "unexpected character '{}'", c.code < 0 ? "?" : s_.substr(pos_, c.bytes));
    }
    const char c = (*found)[0];
    if (c == '(') open += ')';
    if (c == '[') open += ']';
    if (c == '{') open += '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty()) fail_at(line_, "unexpected '{}'", c);
      if (open.back() != c) fail_at(line_, "unexpected '{}', expected '{}'", c, open.back());
      open.pop_back();
    }
    push(Token::Type::Op, *found);
    advance(pos_ + found->size());
  }

  std::size_t digits(std::size_t i, std::string& out) const {
    for (; i < s_.size(); ++i) {
      if (is_digit_char(s_[i]))
        out += s_[i];
      else if (s_[i] != '_' || i + 1 == s_.size() || !is_digit_char(s_[i + 1]))
        break;
    }
    return i;
  }

  void number() {
    std::string text;
    const bool item = !tokens_.empty() && tokens_.back().type == Token::Type::Op &&
                      tokens_.back().text == ".";  // x.0.1: items, not a fraction
    std::size_t end = digits(pos_, text);
    bool real = false;
    if (text == "0" && end < s_.size() && std::string_view("xXoObB").find(s_[end]) != npos) {
      fail_at(line_, "hexadecimal, octal and binary numbers are not supported");
    }
    if (!item && end + 1 < s_.size() && s_[end] == '.' && is_digit_char(s_[end + 1])) {
      real = true;
      text += '.';
      end = digits(end + 1, text);
    }
    if (!item && end < s_.size() && (s_[end] == 'e' || s_[end] == 'E')) {
      const bool sign = end + 1 < s_.size() && (s_[end + 1] == '+' || s_[end + 1] == '-');
      const std::size_t first = end + 1 + (sign ? 1 : 0);
      if (first < s_.size() && is_digit_char(s_[first])) {
        real = true;
        text += 'e';
        if (sign) text += s_[end + 1];
        end = digits(first, text);
      }
    }
    push(real ? Token::Type::Float : Token::Type::Int, text);
    Token& t = tokens_.back();
    const char *from = text.data(), *to = from + text.size();
    const auto error =
        real ? std::from_chars(from, to, t.real).ec : std::from_chars(from, to, t.integer).ec;
    if (error != std::errc()) fail_at(line_, "the number {} is beyond 64 bits", text);
    if (!real && text.size() > 1 && text[0] == '0' && text.find_first_not_of('0') != npos) {
      fail_at(line_, "the number {} begins with a zero", text);
    }
    advance(end);
  }

  void string(char quote) {
    std::size_t end = pos_ + 1;
    while (end < s_.size() && s_[end] != quote) end += s_[end] == '\\' ? 2 : 1;
    if (end >= s_.size()) fail_at(line_, "missing end of string");
    push(Token::Type::String, unescape(s_.substr(pos_ + 1, end - pos_ - 1)));
    advance(end + 1);
  }

  std::string unescape(std::string_view in) const {
    static constexpr std::string_view from = "abfnrtv\\'\"", to = "\a\b\f\n\r\t\v\\'\"";
    std::string out;
    for (std::size_t i = 0; i < in.size(); ++i) {
      if (in[i] != '\\') {
        out += in[i];
        continue;
      }
      const char c = in[++i];
      if (const auto known = from.find(c); known != npos) {
        out += to[known];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const std::size_t n = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        append_code(out, in.substr(i + 1, n), n, 16);
        i += n;
      } else if (c >= '0' && c <= '7') {
        std::size_t n = 1;
        while (n < 3 && i + n < in.size() && in[i + n] >= '0' && in[i + n] <= '7') ++n;
        append_code(out, in.substr(i, n), n, 8);
        i += n - 1;
      } else if (c == 'N') {
        fail_at(line_, "the escape \\N in a string is not supported");
      } else if (c != '\n') {  // an escaped newline joins lines; anything else stays as written
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  void append_code(std::string& out, std::string_view digits, std::size_t n, int base) const {
    std::uint32_t code = 0;
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), code, base);
    if (error != std::errc() || digits.size() != n || end != digits.data() + n || code > 0x10FFFF ||
        (code >= 0xD800 && code < 0xE000)) {
      fail_at(line_, "the escape of '{}' in a string is no character", digits);
    }
    append_char(out, static_cast<std::int32_t>(code));
  }

  const std::string source_;
  const std::string_view s_;
  std::size_t pos_ = 0;
  int line_ = 1, tag_line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace nibble::jinja
