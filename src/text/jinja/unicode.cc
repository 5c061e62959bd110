#include "text/jinja/unicode.h"

#include <string.h>
#include <utf8proc.h>

namespace nibble::jinja {
namespace {

utf8proc_category_t category(std::int32_t c) { return utf8proc_category(c < 0 ? 0xFFFF : c); }

bool is_cased(std::int32_t c) { return is_upper(c) || is_lower(c) || is_title(c); }

// Skipped when looking for the neighbours of a capital sigma.
bool is_case_ignorable(std::int32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return c == '\'' || c == '.' || c == ':' || c == 0xB7 || c == 0x2018 || c == 0x2019 ||
             c == 0x2024 || c == 0x2027;
  }
}

// A capital sigma ends a word: a letter before it and none after it.
bool final_sigma(std::string_view s, std::size_t at) {
  bool before = false;
  for (std::size_t i = at; i > 0 && !before;) {
    --i;
    if ((static_cast<unsigned char>(s[i]) & 0xC0) == 0x80) continue;
    const std::int32_t c = char_at(s, i).code;
    if (!is_case_ignorable(c)) {
      if (!is_cased(c)) return false;
      before = true;
    }
  }
  for (std::size_t i = at + 2; i < s.size();) {
    const Char c = char_at(s, i);
    if (!is_case_ignorable(c.code)) return before && !is_cased(c.code);
    i += c.bytes;
  }
  return before;
}

// The case folding of c where that is several characters (sharp s, ligatures ...): these have
// capitals of several characters, which utf8proc's simple mappings lack.
int long_fold(std::int32_t c, std::int32_t out[4]) {
  if (c < 0xDF || c == 0x1E9E || c == 0x130) return 0;
  const auto n = utf8proc_decompose_char(c, out, 4, UTF8PROC_CASEFOLD, nullptr);
  return n > 1 && n <= 4 ? static_cast<int>(n) : 0;
}

void append_upper(std::string& out, std::int32_t c) {
  std::int32_t fold[4];
  const int n = long_fold(c, fold);
  if (n == 0) append_char(out, utf8proc_toupper(c));
  for (int i = 0; i < n; ++i) append_char(out, utf8proc_toupper(fold[i]));
}

void append_title(std::string& out, std::int32_t c) {
  std::int32_t fold[4];
  const std::int32_t simple = utf8proc_totitle(c);
  const int n = simple == c || c == 0xDF ? long_fold(c, fold) : 0;
  if (n == 0 || is_title(c)) return append_char(out, simple);
  append_char(out, utf8proc_totitle(fold[0]));
  for (int i = 1; i < n; ++i) append_char(out, fold[i]);
}

void append_lower(std::string& out, std::string_view s, std::size_t at, std::int32_t c) {
  if (c == 0x130) {
    out += "i\u0307";
  } else if (c == 0x3A3) {
    append_char(out, final_sigma(s, at) ? 0x3C2 : 0x3C3);
  } else {
    append_char(out, utf8proc_tolower(c));
  }
}

// Calls f(position, char) for every character; a stray byte is copied to `out`.
template <class F>
void each_char(std::string_view s, std::string& out, F f) {
  for (std::size_t i = 0; i < s.size();) {
    const Char c = char_at(s, i);
    if (c.code < 0)
      out += s[i];
    else
      f(i, c.code);
    i += c.bytes;
  }
}

template <class Drop>
std::string_view strip_if(std::string_view s, bool left, bool right, Drop drop) {
  while (left && !s.empty()) {
    const Char c = char_at(s, 0);
    if (!drop(c.code, s.substr(0, c.bytes))) break;
    s.remove_prefix(c.bytes);
  }
  while (right && !s.empty()) {
    std::size_t at = s.size() - 1;
    while (at > 0 && s.size() - at < 4 && (static_cast<unsigned char>(s[at]) & 0xC0) == 0x80) --at;
    Char c = char_at(s, at);
    if (at + c.bytes != s.size()) c = {-1, 1};  // the last byte is a stray one
    if (!drop(c.code, s.substr(s.size() - c.bytes))) break;
    s.remove_suffix(c.bytes);
  }
  return s;
}

}  // namespace

Char char_at(std::string_view s, std::size_t byte) {
  std::int32_t code = 0;
  const auto n = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(s.data()) + byte,
                                  static_cast<utf8proc_ssize_t>(s.size() - byte), &code);
  return n > 0 ? Char{code, static_cast<std::size_t>(n)} : Char{-1, 1};
}

std::size_t count_chars(std::string_view s) {
  std::size_t n = 0;
  for (std::size_t i = 0; i < s.size(); ++n) i += char_at(s, i).bytes;
  return n;
}

std::size_t byte_of_char(std::string_view s, std::size_t index) {
  std::size_t i = 0;
  for (; index > 0 && i < s.size(); --index) i += char_at(s, i).bytes;
  return i;
}

void append_char(std::string& out, std::int32_t code) {
  utf8proc_uint8_t buffer[4];
  const auto n = utf8proc_encode_char(code, buffer);
  out.append(reinterpret_cast<const char*>(buffer), static_cast<std::size_t>(n));
}

bool is_space(std::int32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_printable(std::int32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

bool is_upper(std::int32_t c) {
  return c >= 0 &&
         (utf8proc_isupper(c) != 0 || (c >= 0x2160 && c <= 0x216F) || (c >= 0x24B6 && c <= 0x24CF));
}
bool is_lower(std::int32_t c) {
  return c >= 0 && (utf8proc_islower(c) != 0 || c == 0xAA || c == 0xBA ||
                    (c >= 0x2170 && c <= 0x217F) || (c >= 0x24D0 && c <= 0x24E9));
}
bool is_alpha(std::int32_t c) {
  const auto k = category(c);
  return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}
bool is_title(std::int32_t c) { return category(c) == UTF8PROC_CATEGORY_LT; }
bool is_decimal(std::int32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }
bool is_alnum(std::int32_t c) {
  const auto k = category(c);
  return is_alpha(c) || (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO);
}
bool is_digit(std::int32_t c) {
  return is_decimal(c) || c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089);
}

std::string to_upper(std::string_view s) {
  std::string out;
  each_char(s, out, [&](std::size_t, std::int32_t c) { append_upper(out, c); });
  return out;
}

std::string to_lower(std::string_view s) {
  std::string out;
  each_char(s, out, [&](std::size_t at, std::int32_t c) { append_lower(out, s, at, c); });
  return out;
}

std::string capitalize(std::string_view s) {
  std::string out;
  each_char(s, out, [&](std::size_t at, std::int32_t c) {
    if (at == 0)
      append_title(out, c);
    else
      append_lower(out, s, at, c);
  });
  return out;
}

std::string title_case(std::string_view s) {
  std::string out;
  bool inside = false;
  each_char(s, out, [&](std::size_t at, std::int32_t c) {
    if (inside)
      append_lower(out, s, at, c);
    else
      append_title(out, c);
    inside = is_cased(c);
  });
  return out;
}

std::size_t find_text(std::string_view s, std::string_view needle, std::size_t from) {
  if (from > s.size()) return std::string_view::npos;
  if (needle.empty()) return from;
  const void* p = ::memmem(s.data() + from, s.size() - from, needle.data(), needle.size());
  if (p == nullptr) return std::string_view::npos;
  return static_cast<std::size_t>(static_cast<const char*>(p) - s.data());
}

std::string_view strip(std::string_view s, bool left, bool right) {
  return strip_if(s, left, right, [](std::int32_t c, std::string_view) { return is_space(c); });
}

std::string_view strip(std::string_view s, bool left, bool right, std::string_view chars) {
  return strip_if(s, left, right, [&](std::int32_t, std::string_view bytes) {
    return chars.find(bytes) != std::string_view::npos;
  });
}

}  // namespace nibble::jinja
