// Element types of stored tensors.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace nibble {

enum class DType : std::uint8_t { F32, F16, BF16, F64, I8, I16, I32, I64, U8, Bool };

constexpr std::size_t dtype_size(DType t) {
  switch (t) {
    case DType::F64:
    case DType::I64:
      return 8;
    case DType::F32:
    case DType::I32:
      return 4;
    case DType::F16:
    case DType::BF16:
    case DType::I16:
      return 2;
    case DType::I8:
    case DType::U8:
    case DType::Bool:
      return 1;
  }
  return 0;
}

constexpr std::string_view dtype_name(DType t) {
  constexpr std::string_view names[] = {"F32", "F16", "BF16", "F64", "I8",
                                        "I16", "I32", "I64",  "U8",  "BOOL"};
  return names[static_cast<int>(t)];
}

}  // namespace nibble
