// The sym_int4 format (docs/design.md): one group of consecutive K -> one fp16 scale, which may be
// negative, and 4-bit codes; and the packing of codes into 32-bit words. Nothing else in Nibble
// knows the bit layout of compressed-tensors `pack-quantized` files.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "base/half.h"

namespace nibble::int4 {

// Round-to-nearest by the GGML Q4_0 rule: m = signed element of largest magnitude (first on a
// tie), d = m / -8 in fp32, code = clamp(trunc(x * (1 / d) + 8.5), 0, 15). d = 0 gives code 8.
// x: n finite values, n = group. Returns the stored scale's fp16 bits, infinite when d is too large
// for fp16; value = (code - 8) * scale.
inline std::uint16_t quantise_group(const float* x, int n, std::uint8_t* codes) {
  float m = 0;
  for (int i = 0; i < n; ++i)
    if (std::fabs(x[i]) > std::fabs(m)) m = x[i];
  const float d = m / -8.0f;
  // A subnormal d, whose reciprocal may be infinite, is stored as scale 0 like d = 0.
  const float inv = std::fabs(d) >= 0x1p-126f ? 1.0f / d : 0.0f;
  for (int i = 0; i < n; ++i)
    codes[i] = static_cast<std::uint8_t>(std::clamp(static_cast<int>(x[i] * inv + 8.5f), 0, 15));
  return float_to_half(d);
}

// Element 8w + i of a row lies in bits 4i .. 4i+3 of word w.
inline std::uint32_t pack8(const std::uint8_t* codes) {
  std::uint32_t w = 0;
  for (int i = 0; i < 8; ++i) w |= static_cast<std::uint32_t>(codes[i]) << (4 * i);
  return w;
}
inline void unpack8(std::uint32_t w, std::uint8_t* codes) {
  for (int i = 0; i < 8; ++i) codes[i] = static_cast<std::uint8_t>((w >> (4 * i)) & 15);
}

}  // namespace nibble::int4
