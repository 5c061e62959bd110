// The emulated half of device.h: what kernels use of CUDA, in C++.
#pragma once
#include <cmath>
#include <cstring>

#include "backend/cuda/emulate/emulate.h"
#include "base/half.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (::nibble::emulate::place().thread)
#define blockIdx (::nibble::emulate::place().block)
#define blockDim (::nibble::emulate::place().block_dim)
#define gridDim (::nibble::emulate::place().grid)

namespace nibble::NIBBLE_CUDA_NS {

using dim3 = emulate::Dim;
struct alignas(8) uint2 {
  std::uint32_t x, y;
};
struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(std::uint32_t x, std::uint32_t y, std::uint32_t z, std::uint32_t w) {
  return {x, y, z, w};
}

inline char* shared_memory() { return emulate::shared_memory(); }
inline void block_sync() { emulate::block_sync(); }
inline void warp_sync() { emulate::warp_sync(); }
inline void let_next() {}
inline void start_next(bool = true) {}  // one launch after the other
inline void await_last() {}

template <class T>
inline T from_word(std::uint32_t w) {
  T x;
  std::memcpy(&x, &w, 4);
  return x;
}
template <class T>
inline T shuffle(T x, int lane) {
  std::uint32_t w;
  std::memcpy(&w, &x, 4);
  return from_word<T>(emulate::exchange(&w, 1)[lane & 31][0]);
}
template <class T>
inline T shuffle_xor(T x, int mask) {
  return shuffle(x, static_cast<int>((threadIdx.x & 31) ^ static_cast<unsigned>(mask)));
}
inline int warp_max(int x) {
  std::uint32_t w = static_cast<std::uint32_t>(x);
  const auto* all = emulate::exchange(&w, 1);
  for (int i = 0; i < 32; ++i) x = std::max(x, static_cast<int>(all[i][0]));
  return x;
}
inline int warp_add(int x) {
  std::uint32_t w = static_cast<std::uint32_t>(x), sum = 0;
  const auto* all = emulate::exchange(&w, 1);
  for (int i = 0; i < 32; ++i) sum += all[i][0];
  return static_cast<int>(sum);
}
inline int first_lane(bool is) {
  const std::uint32_t mine = is;
  const auto* all = emulate::exchange(&mine, 1);
  int i = 0;
  while (i < 32 && all[i][0] == 0) ++i;
  return i;
}
inline void spin(int) {}
inline int load_fresh(const int* p) { return *p; }
inline float load_fresh(const float* p) { return *p; }
inline float4 load_fresh(const float4* p) { return *p; }
inline uint4 load_fresh(const uint4* p) { return *p; }
inline void store_four(float* to, const float4& x) { std::memcpy(to, &x, sizeof x); }
inline void fence() {}
inline void cluster_arrive() { emulate::cluster_arrive(); }
inline void cluster_wait() { emulate::cluster_wait(); }
template <class T>
inline void store_remote(float* at, int rank, const T& x) {
  std::memcpy(emulate::remote(at, rank), &x, sizeof x);
}
template <class T>
inline T atomic_add(T* p, int x) {
  const T old = *p;
  *p += static_cast<T>(x);
  return old;
}
inline void await_count(const std::uint64_t* p, std::uint64_t least) {
  emulate::await_count(p, least);
}

inline void copy_async16(void* shared, const void* global) {
  emulate::copy_async(shared, global, 16);
}
struct ReadOnce {};
inline void copy_async16(void* shared, const void* global, ReadOnce) {
  copy_async16(shared, global);
}
// Reads the ends, so that AddressSanitizer sees what lies outside of its memory.
inline void prefetch(const void* global, int bytes) {
  const auto* p = static_cast<const volatile char*>(global);
  (void)p[0], (void)p[bytes - 1];
}
inline void prefetch_line(const void* global) { prefetch(global, 1); }
inline void copy_async_commit() { emulate::copy_async_commit(); }
template <int Left>
inline void copy_async_wait() {
  emulate::copy_async_wait(Left);
}

// PTX ISA, "Matrix Fragments for mma.m16n8k32": of lane 4 g + t, a0..a3 hold row g, g + 8, g, g + 8
// at columns 4 t (a0, a1) and 16 + 4 t (a2, a3); b0, b1 column g at rows 4 t and 16 + 4 t; c0..c3
// row g columns 2 t, 2 t + 1, then row g + 8.
template <class A>
inline void mma(int (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                std::uint32_t b0, std::uint32_t b1) {
  const std::uint32_t mine[] = {a0, a1, a2, a3, b0, b1};
  const auto* all = emulate::exchange(mine, 6);
  const unsigned lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const auto byte = [](std::uint32_t w, unsigned i) { return w >> (8 * i) & 255u; };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned column = 2 * t + i % 2;
    int sum = c[i];
    for (unsigned k = 0; k < 32; ++k) {
      const unsigned from = k % 16 / 4;
      const std::uint32_t a = byte(all[4 * g + from][k / 16 * 2 + i / 2], k % 4),
                          b = byte(all[4 * column + from][4 + k / 16], k % 4);
      sum += static_cast<int>(static_cast<A>(a)) * static_cast<int>(static_cast<std::int8_t>(b));
    }
    c[i] = sum;
  }
}
inline void mma_u8s8(int (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                     std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  mma<std::uint8_t>(c, a0, a1, a2, a3, b0, b1);
}
inline void mma_s8s8(int (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                     std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  mma<std::int8_t>(c, a0, a1, a2, a3, b0, b1);
}
// mma.m16n8k16 of fp16: of lane 4 g + t, a0..a3 hold row g, g + 8, g, g + 8 at columns 2 t, 2 t + 1
// (a0, a1) and 8 further on; b0, b1 column g at those rows; c0..c3 as above. A device adds in an
// order of its own; here a sum of 16 products and c is rounded once.
inline void mma_f16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                    std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  const std::uint32_t mine[] = {a0, a1, a2, a3, b0, b1};
  const auto* all = emulate::exchange(mine, 6);
  const unsigned lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const auto half = [](std::uint32_t w, unsigned i) {
    return half_to_float(static_cast<std::uint16_t>(w >> (16 * i)));
  };
  float a[2][16], b[2][16];
  for (unsigned i = 0; i < 2; ++i)
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned from = k % 8 / 2, word = k / 8;
      a[i][k] = half(all[4 * g + from][2 * word + i], k % 2);
      b[i][k] = half(all[4 * (2 * t + i) + from][4 + word], k % 2);
    }
  for (unsigned i = 0; i < 4; ++i) {
    double sum = 0;
    for (unsigned k = 0; k < 16; ++k)
      sum += static_cast<double>(a[i / 2][k]) * static_cast<double>(b[i % 2][k]);
    c[i] = static_cast<float>(sum + static_cast<double>(c[i]));
  }
}

template <class T>
inline void hold(T&) {}
inline int block_again() { return static_cast<int>(blockIdx.x); }
inline unsigned thread_again() { return threadIdx.x; }

inline int float_bits(float x) {
  int i;
  std::memcpy(&i, &x, 4);
  return i;
}
inline float bits_float(int i) { return from_word<float>(static_cast<std::uint32_t>(i)); }
inline int round_int(float x) { return static_cast<int>(__builtin_rintf(x)); }
inline float from_half(std::uint16_t h) { return half_to_float(h); }
inline std::uint32_t and_or(std::uint32_t x, std::uint32_t mask, std::uint32_t bits) {
  return (x & mask) | bits;
}
template <int Which>
inline std::uint32_t four_bytes(int a, int b, int c, int d) {
  const auto byte = [](int x) { return static_cast<std::uint32_t>(x) >> (8 * Which) & 255u; };
  return byte(a) | byte(b) << 8 | byte(c) << 16 | byte(d) << 24;
}
inline int add_bytes(std::uint32_t x, int sum) {
  for (int i = 0; i < 4; ++i) sum += static_cast<std::int8_t>(x >> (8 * i) & 255u);
  return sum;
}
inline std::uint32_t half_twice(std::uint32_t x, int which) {
  return (x >> (16 * which) & 0xffffu) * 0x10001u;
}
// Of halves: a float holds their product, and the rounding of a sum is made twice.
inline std::uint32_t half2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t r = 0;
  for (int i = 0; i < 32; i += 16) {
    const auto of = [&](std::uint32_t w) { return from_half(static_cast<std::uint16_t>(w >> i)); };
    r |= static_cast<std::uint32_t>(float_to_half(of(a) * of(b) + of(c))) << i;
  }
  return r;
}
inline std::uint32_t half2_mul(std::uint32_t a, std::uint32_t b) {
  return half2_fma(a, b, 0x80008000u);
}
inline float from_bf16(std::uint16_t h) { return bits_float(static_cast<int>(h) << 16); }
inline std::uint32_t to_halves(float low, float high) {
  return float_to_half(low) | static_cast<std::uint32_t>(float_to_half(high)) << 16;
}
inline float exp2_near(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}
inline float reciprocal_near(float x) {
  const float y = 1.0f / x;
  return std::fabs(y) < 0x1p-126f ? std::copysign(0.0f, y) : y;
}

}  // namespace nibble::NIBBLE_CUDA_NS
