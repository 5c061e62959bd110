#include "checkpoint/names.h"

#include <fmt/format.h>

#include "base/error.h"
#include "text/unicode.h"

namespace nibble {
namespace {

bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

}  // namespace

std::string quote(std::string_view s) {
  constexpr std::size_t kLongest = 120;
  const bool text = is_valid_utf8(s);
  std::size_t end = s.size();
  if (end > kLongest) {
    end = kLongest;
    while (text && (static_cast<unsigned char>(s[end]) & 0xc0) == 0x80) --end;  // whole characters
  }
  std::string out = "\"";
  for (const char c : s.substr(0, end)) {
    const auto u = static_cast<unsigned char>(c);
    if (is_control(c) || (u >= 0x80 && !text))
      out += fmt::format("\\x{:02x}", u);
    else
      out += c;
  }
  return out + (end < s.size() ? "...\"" : "\"");
}

void require_name(std::string_view name, std::string_view where, std::string_view what) {
  bool good = !name.empty() && is_valid_utf8(name);
  for (const char c : name) good = good && !is_control(c);
  require(good, "{}: the {} name {} is not printable UTF-8; the file is damaged", where, what,
          quote(name));
}

int layer_number(std::string_view digits) {
  if (digits.empty() || digits.size() > 5 || (digits[0] == '0' && digits.size() > 1)) return -1;
  int n = 0;
  for (const char c : digits) {
    if (c < '0' || c > '9') return -1;
    n = n * 10 + (c - '0');
  }
  return n;
}

}  // namespace nibble
