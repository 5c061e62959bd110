// Patterns that both tokenizer.json (by step name) and GGUF (by pre-tokenizer name) refer to.
#pragma once
#include <string_view>

#include "text/tokenizer.h"

namespace nibble {

inline constexpr std::string_view kGpt2 =  // the ByteLevel step with use_regex
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kDigit = R"(\p{N})";    // Digits, individual
inline constexpr std::string_view kDigits = R"(\p{N}+)";  // Digits, runs

}  // namespace nibble
