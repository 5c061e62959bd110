// Template source -> tokens, with Jinja's white-space rules for trim_blocks and lstrip_blocks.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::jinja {

struct Token {
  enum class Type {
    Data,
    PrintBegin,
    PrintEnd,
    TagBegin,
    TagEnd,
    Name,
    String,
    Int,
    Float,
    Op,
    End
  };
  Type type;
  int line;
  std::string text;  // Data, Name, Op; String: unescaped
  std::int64_t integer = 0;
  double real = 0;
};

// Throws Error with the line. The last token is End.
std::vector<Token> tokenize(std::string_view source);

}  // namespace nibble::jinja
