// Sixteen lanes in plain C++: the meaning of every vector operation. See avx2.h for the list.
#pragma once
#include <cstdint>
#include <cstring>

#include "backend/cpu/kernels.h"
#include "base/half.h"

namespace nibble::cpu {
namespace {

struct F {
  float v[16];
};
struct I {
  std::int32_t v[16];
};

template <class R, class Fn>
inline R lanes(Fn fn) {
  R r;
  for (int i = 0; i < 16; ++i) r.v[i] = fn(i);
  return r;
}

constexpr int kHeldVectors = 4;  // sums that stay in registers beside what they take

inline F f_set1(float x) {
  return lanes<F>([&](int) { return x; });
}
inline F f_zero() { return f_set1(0); }
inline F f_load(const float* p) {
  return lanes<F>([&](int i) { return p[i]; });
}
inline void f_store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
inline F f_add(F a, F b) {
  return lanes<F>([&](int i) { return a.v[i] + b.v[i]; });
}
inline F f_sub(F a, F b) {
  return lanes<F>([&](int i) { return a.v[i] - b.v[i]; });
}
inline F f_mul(F a, F b) {
  return lanes<F>([&](int i) { return a.v[i] * b.v[i]; });
}
inline F f_div(F a, F b) {
  return lanes<F>([&](int i) { return a.v[i] / b.v[i]; });
}
inline F f_fma(F a, F b, F c) {
  return lanes<F>([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
// b where unordered, as the x86 instructions do.
inline F f_max(F a, F b) {
  return lanes<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F f_min(F a, F b) {
  return lanes<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
// x where a < b, else 0.
inline F f_if_lt(F a, F b, F x) {
  return lanes<F>([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : 0.0f; });
}
inline F f_from_half(const std::uint16_t* p) {
  return lanes<F>([&](int i) { return half_to_float(p[i]); });
}
inline F f_from_bf16(const std::uint16_t* p) {
  return lanes<F>([&](int i) { return bf16_to_float(p[i]); });
}
inline F f_from_i16(const std::int16_t* p) {
  return lanes<F>([&](int i) { return static_cast<float>(p[i]); });
}
inline void f_store_half(std::uint16_t* p, F a) {
  for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]);
}
inline F f_from_i(I a) {
  return lanes<F>([&](int i) { return static_cast<float>(a.v[i]); });
}
inline F f_bits(I a) {
  F r;
  std::memcpy(r.v, a.v, sizeof r.v);
  return r;
}

inline I i_set1(std::int32_t x) {
  return lanes<I>([&](int) { return x; });
}
inline I i_load(const void* p) {
  I r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
inline void i_store(std::int32_t* p, I a) { std::memcpy(p, a.v, sizeof a.v); }
inline I i_bits(F a) { return i_load(a.v); }
inline I i_add(I a, I b) {
  return lanes<I>([&](int i) { return a.v[i] + b.v[i]; });
}
inline I i_sub(I a, I b) {
  return lanes<I>([&](int i) { return a.v[i] - b.v[i]; });
}
inline I i_and(I a, I b) {
  return lanes<I>([&](int i) { return a.v[i] & b.v[i]; });
}
inline I i_max(I a, I b) {
  return lanes<I>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline std::int32_t i_largest(I a) {
  for (int i = 1; i < 16; ++i) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
  return a.v[0];
}
inline std::int32_t i_sum(I a) {
  for (int i = 1; i < 16; ++i) a.v[0] += a.v[i];
  return a.v[0];
}
inline I i_shl(I a, int n) {
  return lanes<I>(
      [&](int i) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v[i]) << n); });
}
inline I i_sar(I a, int n) {
  return lanes<I>([&](int i) { return a.v[i] >> n; });
}
// Nearest, ties to even; out of range and NaN give INT32_MIN.
inline I i_round(F a) {
  return lanes<I>([&](int i) {
    const float x = a.v[i];
    return x >= -2147483648.0f && x < 2147483648.0f ? static_cast<std::int32_t>(__builtin_rintf(x))
                                                    : INT32_MIN;
  });
}
inline void i_store8(std::int8_t* p, I a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(a.v[i]);
}
inline void i_store16(std::int16_t* p, I a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int16_t>(a.v[i]);
}

// 16 values, in the order of XRow::q.
inline void i_store_pairs(std::int16_t* p, I a) {
  for (int i = 0; i < 16; ++i)
    p[i / 8 * 8 + i % 2 * 4 + i % 8 / 2] = static_cast<std::int16_t>(a.v[i]);
}

// s[m] = sum of code' * q over `chunks` chunks, one W row a lane; code' = code - 8 if Centred.
// L = 2: 16-bit q, L = 1: 8-bit.
template <int L, int MB, int Chunks, bool Centred>
inline void dot_int4(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  for (int m = 0; m < MB; ++m) {
    s[m] = i_set1(0);
    for (int i = 0; i < Chunks * 256; ++i) {
      const std::int64_t k = k0 + i / 64 * 8 + i % 2 * 4;  // columns c and c + 4
      const int half = i % 4 / 2, bias = Centred ? 8 : 0;
      s[m].v[i / 4 % 16] += ((codes[i] & 15) - bias) * q_word<MB>(x, m, k)[half] +
                            ((codes[i] >> 4) - bias) * q_word<MB>(x, m, k + 2)[half];
    }
  }
}
template <int L, int MB, int Chunks>
inline void dot_int8(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  for (int m = 0; m < MB; ++m) {
    s[m] = i_set1(0);
    for (int i = 0; i < Chunks * 512; ++i) {
      const std::int64_t k = k0 + i / 128 * 8 + i % 2 * 4 + i / 64 % 2 * 2;
      s[m].v[i / 4 % 16] += static_cast<std::int8_t>(codes[i]) * q_word<MB>(x, m, k)[i % 4 / 2];
    }
  }
}

}  // namespace
}  // namespace nibble::cpu
