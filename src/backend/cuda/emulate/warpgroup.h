// The emulated half of warpgroup.h: products are made where they are asked for.
#pragma once
#include "backend/cuda/emulate/device.h"

#define NIBBLE_HAS_WARPGROUPS 1

namespace nibble::NIBBLE_CUDA_NS {

template <int Bytes>
void copy_async(void* shared, const void* global) {
  emulate::copy_async(shared, global, Bytes);
}
inline void show_to_warpgroups() {}
inline void warpgroup_begin() {}
inline void barrier_init(void* barrier, int count) { emulate::barrier_init(barrier, count); }
inline void barrier_arrive(void* barrier) { emulate::barrier_arrive(barrier); }
inline void barrier_wait(void* barrier, int parity) { emulate::barrier_wait(barrier, parity); }
template <class T, int N>
inline void warpgroup_end(T (&)[N]) {}

template <bool U, int Octets>
inline void warpgroup_mma(int (&c)[4 * Octets], std::uint32_t a0, std::uint32_t a1,
                          std::uint32_t a2, std::uint32_t a3, const char* bytes, bool add) {
  const std::uint32_t mine[] = {a0, a1, a2, a3};
  const auto* all = emulate::exchange(mine, 4);
  const unsigned lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const std::uintptr_t at = reinterpret_cast<std::uintptr_t>(bytes), first = at % 128;
  const char* const tile = bytes - at % 1024;
  int a[2][32];  // rows g and g + 8
  for (unsigned h = 0; h < 2; ++h)
    for (unsigned k = 0; k < 32; ++k) {
      const std::uint32_t byte = all[4 * g + k % 16 / 4][k / 16 * 2 + h] >> (8 * (k % 4)) & 255u;
      a[h][k] = U ? static_cast<int>(byte) : static_cast<std::int8_t>(byte);
    }
  for (unsigned i = 0; i < 4 * Octets; ++i) {
    const unsigned n = i / 4 * 8 + 2 * t + i % 2;
    int sum = add ? c[i] : 0;
    for (unsigned k = 0; k < 32; ++k) {
      const std::size_t j = first + k;
      sum += a[i / 2 % 2][k] *
             static_cast<std::int8_t>(tile[n * 128 + ((j / 16) ^ n % 8) * 16 + j % 16]);
    }
    c[i] = sum;
  }
}

inline std::uint64_t swizzled(const char* bytes) {
  return reinterpret_cast<std::uintptr_t>(bytes) / 16;
}
template <int Octets>
inline void warpgroup_mma_half(float (&c)[4 * Octets], std::uint32_t a0, std::uint32_t a1,
                               std::uint32_t a2, std::uint32_t a3, std::uint64_t b_at, bool add) {
  const std::uint32_t mine[] = {a0, a1, a2, a3};
  const auto* all = emulate::exchange(mine, 4);
  const unsigned lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const std::uintptr_t at = b_at * 16, first = at % 128;
  const char* const tile = reinterpret_cast<const char*>(at - at % 1024);
  float a[2][16];  // rows g and g + 8
  for (unsigned h = 0; h < 2; ++h)
    for (unsigned k = 0; k < 16; ++k)
      a[h][k] = from_half(
          static_cast<std::uint16_t>(all[4 * g + k % 8 / 2][k / 8 * 2 + h] >> (16 * (k % 2))));
  for (unsigned i = 0; i < 4 * Octets; ++i) {
    const unsigned n = i / 4 * 8 + 2 * t + i % 2;
    if (!add) c[i] = 0;
    for (unsigned k = 0; k < 16; ++k) {
      const std::size_t j = first + 2 * k;
      std::uint16_t b;
      std::memcpy(&b, tile + n * 128 + ((j / 16) ^ n % 8) * 16 + j % 16, 2);
      c[i] += a[i / 2 % 2][k] * from_half(b);
    }
  }
}

}  // namespace nibble::NIBBLE_CUDA_NS
