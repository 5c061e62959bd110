#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace nibble {
namespace {

bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80; }

// NFC of one run into `out`. utf8proc's own reordering of marks is quadratic on hostile text, so
// only its tables and its (linear) composition are used.
void append_nfc(std::string& out, std::string_view text) {
  std::vector<utf8proc_int32_t> codes;
  codes.reserve(text.size());
  bool composed = true;  // everything below U+0300 is its own NFC
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Char c = decode_utf8(text.substr(i));
    composed &= c.code < 0x300;
    utf8proc_int32_t parts[8];
    const auto n = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(c.code), parts, 8,
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE), nullptr);
    require(n >= 0 && n <= 8, "cannot decompose U+{:04X}", static_cast<std::uint32_t>(c.code));
    codes.insert(codes.end(), parts, parts + n);
    i += c.length;
  }
  if (composed) {
    out += text;
    return;
  }
  const auto rank = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (auto it = codes.begin(); it != codes.end();) {
    it = std::find_if(it, codes.end(), rank);
    const auto end = std::find_if_not(it, codes.end(), rank);
    std::stable_sort(it, end, [&](auto a, auto b) { return rank(a) < rank(b); });
    it = end;
  }
  const auto n =
      utf8proc_normalize_utf32(codes.data(), static_cast<utf8proc_ssize_t>(codes.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  require(n >= 0, "cannot compose: {}", utf8proc_errmsg(n));
  for (utf8proc_ssize_t i = 0; i < n; ++i) append_utf8(out, static_cast<char32_t>(codes[i]));
}

}  // namespace

Utf8Char decode_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Utf8Char::kValid, 1, lead};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Char::kInvalid, 1};
  const std::uint8_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and codes above U+10FFFF.
  unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code = lead & (0x7Fu >> length);
  for (std::uint8_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Char::kIncomplete, i};
    if (byte(i) < low || byte(i) > high) return {Utf8Char::kInvalid, i};
    code = code << 6 | (byte(i) & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Char::kValid, length, code};
}

std::size_t previous_char(std::string_view text, std::size_t end) {
  do --end;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

void append_utf8(std::string& out, char32_t code) {
  const auto put = [&](char32_t bits) { out += static_cast<char>(bits); };
  if (code < 0x80) {
    put(code);
    return;
  }
  if (code < 0x800) {
    put(0xC0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xE0 | code >> 12);
    } else {
      put(0xF0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3F));
    }
    put(0x80 | (code >> 6 & 0x3F));
  }
  put(0x80 | (code & 0x3F));
}

std::size_t valid_prefix(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    if (is_ascii(text[i])) {
      ++i;
      continue;
    }
    const Utf8Char c = decode_utf8(text.substr(i));
    if (c.kind != Utf8Char::kValid) break;
    i += c.length;
  }
  return i;
}

bool is_valid_utf8(std::string_view text) { return valid_prefix(text) == text.size(); }

std::size_t append_lossy(std::string& out, std::string_view text, bool final) {
  std::size_t i = 0;
  while (i < text.size()) {
    const std::size_t valid = valid_prefix(text.substr(i));
    out += text.substr(i, valid);
    i += valid;
    if (i == text.size()) break;
    const Utf8Char c = decode_utf8(text.substr(i));
    if (c.kind == Utf8Char::kIncomplete && !final) break;
    append_utf8(out, 0xFFFD);
    i += c.length;
  }
  return i;
}

bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word_char(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:  // joiners, and the circled and squared letters, which are symbols but alphabetic
      return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
             (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
             (c >= 0x1F170 && c <= 0x1F189);
  }
}

std::string nfc(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (auto at = text.begin(); at != text.end();) {
    // ASCII never composes with what stands before it: a run of other characters and the one
    // ASCII character in front of it normalise on their own.
    const auto run = std::find_if_not(at, text.end(), is_ascii);
    const auto end = std::find_if(run, text.end(), is_ascii);
    const auto start = run != at && run != end ? run - 1 : run;
    out.append(at, start);
    append_nfc(out, {start, end});
    at = end;
  }
  return out;
}

}  // namespace nibble
