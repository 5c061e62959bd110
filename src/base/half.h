// fp16 and bf16 as stored bits, and their conversions (round to nearest even).
#pragma once
#include <bit>
#include <cstdint>

namespace nibble {

// Exact, and in operations every vector unit has: the compiler's own conversion is a library call
// where the build does not assume F16C. The product scales subnormals as well.
inline float half_to_float(std::uint16_t h) {
  const std::uint32_t magnitude = h & 0x7fffu;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const std::uint32_t inf_or_nan = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | inf_or_nan |
                              static_cast<std::uint32_t>(h & 0x8000u) << 16);
}
inline std::uint16_t float_to_half(float f) {
  return std::bit_cast<std::uint16_t>(static_cast<_Float16>(f));
}
inline float bf16_to_float(std::uint16_t b) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(b) << 16);
}
inline std::uint16_t float_to_bf16(float f) {
  const auto u = std::bit_cast<std::uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x40);  // NaN
  return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

}  // namespace nibble
