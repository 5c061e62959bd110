// Characters of UTF-8 text, as Python's str sees them: positions, white space, case.
// A byte that is not part of valid UTF-8 counts as one character and is kept as it is.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::jinja {

struct Char {
  std::int32_t code;  // -1: a stray byte
  std::size_t bytes;
};

Char char_at(std::string_view s, std::size_t byte);  // byte < s.size()
std::size_t count_chars(std::string_view s);
std::size_t byte_of_char(std::string_view s, std::size_t index);  // s.size() when past the end
void append_char(std::string& out, std::int32_t code);

bool is_space(std::int32_t code);      // str.isspace of one character
bool is_printable(std::int32_t code);  // shown as itself by repr
bool is_upper(std::int32_t code);
bool is_lower(std::int32_t code);
bool is_title(std::int32_t code);
bool is_alpha(std::int32_t code);
bool is_decimal(std::int32_t code);
bool is_digit(std::int32_t code);  // decimals and superscripts (str.isdigit)
bool is_alnum(std::int32_t code);

// As Python's str, special casing included, but for the title case of nine characters of
// polytonic Greek and of U+0149.
std::string to_upper(std::string_view s);
std::string to_lower(std::string_view s);
std::string capitalize(std::string_view s);  // first character in title case, the rest lower
std::string title_case(std::string_view s);  // str.title: every word so

// First place of `needle` at or after `from`, in linear time; npos if none.
std::size_t find_text(std::string_view s, std::string_view needle, std::size_t from = 0);

// s without white space, or without the characters of `chars`, at the ends asked for.
std::string_view strip(std::string_view s, bool left, bool right);
std::string_view strip(std::string_view s, bool left, bool right, std::string_view chars);

}  // namespace nibble::jinja
