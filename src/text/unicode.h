// UTF-8 and the few Unicode questions a tokenizer asks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

struct Utf8Char {
  // kIncomplete: the text ends inside a character that more bytes could complete.
  enum Kind : std::uint8_t { kValid, kInvalid, kIncomplete };
  Kind kind = kInvalid;
  std::uint8_t length = 0;  // bytes; of an invalid or incomplete one, its maximal subpart (1 to 3)
  char32_t code = 0xFFFD;
};

// The character at the start of `text`, which must not be empty. Surrogates, overlong forms and
// code points above U+10FFFF are invalid; subparts are cut as in Unicode 3.9, table 3-7.
Utf8Char decode_utf8(std::string_view text);

// Where the character that ends at `end` (> 0) starts; `text` is valid UTF-8.
std::size_t previous_char(std::string_view text, std::size_t end);

void append_utf8(std::string& out, char32_t code);

bool is_valid_utf8(std::string_view text);

// Length of the valid UTF-8 at the start of `text`; a character cut off by its end is not valid.
std::size_t valid_prefix(std::string_view text);

// Appends `text` to `out`, each invalid subpart as U+FFFD, and returns the bytes taken. An
// incomplete character at the end is left, unless `final`: then it is invalid.
std::size_t append_lossy(std::string& out, std::string_view text, bool final);

bool is_space(char32_t code);      // Unicode White_Space
bool is_word_char(char32_t code);  // \w of UTS 18: Alphabetic, marks, decimals, connectors, joiners

// Canonical composition (NFC). `text` is valid UTF-8. Time O(n log n) on any text.
std::string nfc(std::string_view text);

}  // namespace nibble
