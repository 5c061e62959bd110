// Nibble's public C++ API. Self-contained: includes the standard library only.
#pragma once
#include <string_view>

namespace nibble {

// The library's version, "major.minor.patch". Static storage.
std::string_view version();

}  // namespace nibble
