// Sixteen lanes as two AVX2 registers. Lane-wise operations are IEEE exact, so every instruction
// set gives the same bits; scalar.h says what each operation means.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "backend/cpu/kernels.h"

namespace nibble::cpu {
namespace {

struct F {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};

inline F f_set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F f_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F f_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void f_store(float* p, F x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline F f_add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F f_sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F f_mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F f_div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F f_fma(F x, F y, F z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline F f_max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F f_min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F f_if_lt(F x, F y, F z) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), z.a),
          _mm256_and_ps(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ), z.b)};
}
inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline F f_from_half(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))};
}
inline F f_from_bf16(const std::uint16_t* p) {
  const auto widen = [](__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  };
  return {widen(load128(p)), widen(load128(p + 8))};
}
inline F f_from_i16(const std::int16_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(load128(p))),
          _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(load128(p + 8)))};
}
inline void f_store_half(std::uint16_t* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                   _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline F f_from_i(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline F f_bits(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline I i_set1(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I i_load(const void* p) { return {load256(p), load256(static_cast<const char*>(p) + 32)}; }
inline void i_store(std::int32_t* p, I x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
inline I i_bits(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline I i_add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline I i_sub(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
inline I i_and(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline I i_max(I x, I y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
inline I i_shl(I x, int n) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
inline I i_sar(I x, int n) { return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)}; }
inline I i_round(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline __m256i narrow16(I x) {  // low 16 bits of each lane, in order
  const __m256i m = _mm256_set1_epi32(0xffff);
  return _mm256_permute4x64_epi64(
      _mm256_packus_epi32(_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)), 0xd8);
}
inline void i_store16(std::int16_t* p, I x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow16(x));
}
inline void i_store8(std::int8_t* p, I x) {
  const __m256i h = _mm256_and_si256(narrow16(x), _mm256_set1_epi16(0xff));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi16(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1)));
}

inline void i_store_pairs(std::int16_t* p, I x) {  // XRow::q's order
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_shuffle_epi8(narrow16(x), order));
}

template <class T>
inline __m256i word(const T* p) {  // 32 bits, in every lane
  std::int32_t v;
  std::memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}

// Bytes. Eight rows of W at a time, so that all sums stay in registers. A chunk is 8 steps of 4
// columns; a 16-bit lane takes 8 sums of at most 2 * 15 * 128 = 3840, which stays below 32767.
template <int L, int MB, int Chunks, bool Centred>
inline void dot_int4_bytes(const std::uint8_t* codes, const XRow* x, std::int64_t k0,
                           __m256i* sum) {
  const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  for (int m = 0; m < MB; ++m) sum[m] = _mm256_setzero_si256();
  for (int c = 0; c < Chunks; ++c) {
    __m256i lo[MB], hi[MB];
    for (int m = 0; m < MB; ++m) lo[m] = hi[m] = _mm256_setzero_si256();
    for (int v = 0; v < 4; ++v) {
      const __m256i w = load256(codes + c * 256 + v * 64);
      const __m256i w0 = _mm256_and_si256(w, nibble);
      const __m256i w1 = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
      for (int m = 0; m < MB; ++m) {
        const std::int64_t k = k0 + c * 32 + v * 8;
        lo[m] = _mm256_add_epi16(lo[m], _mm256_maddubs_epi16(w0, word(lo_word<MB>(x, m, k))));
        lo[m] = _mm256_add_epi16(lo[m], _mm256_maddubs_epi16(w1, word(lo_word<MB>(x, m, k + 4))));
        if (L == 2) {
          hi[m] = _mm256_add_epi16(hi[m], _mm256_maddubs_epi16(w0, word(x[m].hi + k)));
          hi[m] = _mm256_add_epi16(hi[m], _mm256_maddubs_epi16(w1, word(x[m].hi + k + 4)));
        }
      }
    }
    for (int m = 0; m < MB; ++m) {
      if (Centred) sum[m] = _mm256_add_epi32(sum[m], word(minus8_word<MB>(x, m, k0 / kChunk + c)));
      sum[m] = _mm256_add_epi32(sum[m], _mm256_madd_epi16(lo[m], ones));
      if (L == 2)
        sum[m] = _mm256_add_epi32(sum[m], _mm256_slli_epi32(_mm256_madd_epi16(hi[m], ones), 8));
    }
  }
}

// 16-bit pairs: more work to split a code vector, less for each row of x.
template <int MB, int Chunks, bool Centred>
inline void dot_int4_pairs(const std::uint8_t* codes, const XRow* x, std::int64_t k0,
                           __m256i* sum) {
  const __m256i nibble = _mm256_set1_epi16(15);
  for (int m = 0; m < MB; ++m)
    sum[m] = Centred ? word(minus8_word<MB>(x, m, k0 / kChunk)) : _mm256_setzero_si256();
  if (Centred && Chunks == 2)
    for (int m = 0; m < MB; ++m)
      sum[m] = _mm256_add_epi32(sum[m], word(minus8_word<MB>(x, m, k0 / kChunk + 1)));
  for (int v = 0; v < Chunks * 4; ++v) {
    const __m256i w = load256(codes + v * 64);
    const __m256i part[4] = {
        _mm256_and_si256(w, nibble), _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble),
        _mm256_and_si256(_mm256_srli_epi16(w, 8), nibble), _mm256_srli_epi16(w, 12)};
    for (int m = 0; m < MB; ++m)
      for (int i = 0; i < 4; ++i)
        sum[m] = _mm256_add_epi32(
            sum[m], _mm256_madd_epi16(part[i], word(q_word<MB>(x, m, k0 + v * 8 + i * 2))));
  }
}

template <int L, int MB, int Chunks, bool Centred>
inline void dot_int4(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  for (int half = 0; half < 2; ++half) {
    __m256i sum[MB];
    if constexpr (L == 1 || MB == 1)
      dot_int4_bytes<L, MB, Chunks, Centred>(codes + half * 32, x, k0, sum);
    else
      dot_int4_pairs<MB, Chunks, Centred>(codes + half * 32, x, k0, sum);
    for (int m = 0; m < MB; ++m) (half == 0 ? s[m].a : s[m].b) = sum[m];
  }
}

template <int L, int MB, int Chunks>
inline void dot_int8(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  for (int half = 0; half < 2; ++half) {
    __m256i sum[MB];
    for (int m = 0; m < MB; ++m) sum[m] = _mm256_setzero_si256();
    for (int v = 0; v < Chunks * 8; ++v) {
      const __m256i w = load256(codes + v * 64 + half * 32);
      const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8),
                    odd = _mm256_srai_epi16(w, 8);
      for (int m = 0; m < MB; ++m) {
        const std::int64_t k = k0 + v / 2 * 8 + v % 2 * 2;
        sum[m] = _mm256_add_epi32(sum[m], _mm256_madd_epi16(even, word(q_word<MB>(x, m, k))));
        sum[m] = _mm256_add_epi32(sum[m], _mm256_madd_epi16(odd, word(q_word<MB>(x, m, k + 4))));
      }
    }
    for (int m = 0; m < MB; ++m) (half == 0 ? s[m].a : s[m].b) = sum[m];
  }
}

}  // namespace
}  // namespace nibble::cpu
