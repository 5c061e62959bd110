// Names and strings that come out of files, made safe to check and to print.
#pragma once
#include <string>
#include <string_view>

namespace nibble {

// `s` in double quotes for a message: control and non-UTF-8 bytes escaped, long text cut.
std::string quote(std::string_view s);

// Throws Error unless `name` is non-empty UTF-8 without control characters. what: "tensor", "key".
void require_name(std::string_view name, std::string_view where, std::string_view what);

// The number in [0, 99999] that all of `digits` spells without leading zeros; -1 if it is none.
int layer_number(std::string_view digits);

}  // namespace nibble
