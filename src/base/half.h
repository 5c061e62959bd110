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
// Likewise. A normal result rounds in the integers; a subnormal one in an addition, to the last
// place of 0.5, which is fp16's smallest step. 65520 and more are infinite.
inline std::uint16_t float_to_half(float f) {
  const auto u = std::bit_cast<std::uint32_t>(f);
  const std::uint32_t size = u & 0x7fffffffu;
  const std::uint32_t normal = (size - (112u << 23) + 0xfffu + (size >> 13 & 1u)) >> 13;
  const std::uint32_t tiny =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3f000000u;
  const std::uint32_t special = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const std::uint32_t h = size >= 0x477ff000u ? special : size < 0x38800000u ? tiny : normal;
  return static_cast<std::uint16_t>((u >> 16 & 0x8000u) | h);
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
