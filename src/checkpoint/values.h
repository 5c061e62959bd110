// Runs of stored numbers -> fp32, little-endian, at any address; loops that vectorise.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace nibble {

template <class T>
T load(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// fp16 bits -> fp32, branch-free: a conversion instruction is not in the baseline ISA and the
// library call would be the cost of a load. Exponents are rebased by a multiplication, which also
// normalises subnormals.
inline float widen_half(std::uint16_t h) {
  const std::uint32_t magnitude = (h & 0x7fffu) << 13;
  const std::uint32_t sign = (h & 0x8000u) << 16;
  const auto finite = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const std::uint32_t special = magnitude | 0x7f800000u;
  return std::bit_cast<float>(sign | (magnitude >= 0x0f800000u ? special : finite));
}

inline void widen_f16(const std::byte* src, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = widen_half(load<std::uint16_t>(src + 2 * i));
}
inline void widen_bf16(const std::byte* src, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i)
    out[i] = std::bit_cast<float>(std::uint32_t{load<std::uint16_t>(src + 2 * i)} << 16);
}

inline bool all_finite(const float* x, std::size_t n) {
  std::uint32_t bad = 0;
  for (std::size_t i = 0; i < n; ++i)
    bad |= (std::bit_cast<std::uint32_t>(x[i]) & 0x7f800000u) == 0x7f800000u;
  return bad == 0;
}

}  // namespace nibble
