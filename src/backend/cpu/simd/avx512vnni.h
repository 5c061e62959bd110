// Sixteen lanes as one AVX-512 register, dot products by VNNI. scalar.h says what each means.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "backend/cpu/kernels.h"

namespace nibble::cpu {
namespace {

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};

inline F f_set1(float x) { return {_mm512_set1_ps(x)}; }
inline F f_zero() { return {_mm512_setzero_ps()}; }
inline F f_load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void f_store(float* p, F x) { _mm512_storeu_ps(p, x.v); }
inline F f_add(F x, F y) { return {_mm512_add_ps(x.v, y.v)}; }
inline F f_sub(F x, F y) { return {_mm512_sub_ps(x.v, y.v)}; }
inline F f_mul(F x, F y) { return {_mm512_mul_ps(x.v, y.v)}; }
inline F f_div(F x, F y) { return {_mm512_div_ps(x.v, y.v)}; }
inline F f_fma(F x, F y, F z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
inline F f_max(F x, F y) { return {_mm512_max_ps(x.v, y.v)}; }
inline F f_min(F x, F y) { return {_mm512_min_ps(x.v, y.v)}; }
inline F f_if_lt(F x, F y, F z) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), z.v)};
}
inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline F f_from_half(const std::uint16_t* p) { return {_mm512_cvtph_ps(load256(p))}; }
inline F f_from_bf16(const std::uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(p)), 16))};
}
inline F f_from_i16(const std::int16_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(load256(p)))};
}
inline void f_store_half(std::uint16_t* p, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
inline F f_from_i(I x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline F f_bits(I x) { return {_mm512_castsi512_ps(x.v)}; }

inline I i_set1(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I i_load(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void i_store(std::int32_t* p, I x) { _mm512_storeu_si512(p, x.v); }
inline I i_bits(F x) { return {_mm512_castps_si512(x.v)}; }
inline I i_add(I x, I y) { return {_mm512_add_epi32(x.v, y.v)}; }
inline I i_sub(I x, I y) { return {_mm512_sub_epi32(x.v, y.v)}; }
inline I i_and(I x, I y) { return {_mm512_and_si512(x.v, y.v)}; }
inline I i_max(I x, I y) { return {_mm512_max_epi32(x.v, y.v)}; }
inline I i_shl(I x, int n) { return {_mm512_slli_epi32(x.v, static_cast<unsigned>(n))}; }
inline I i_sar(I x, int n) { return {_mm512_srai_epi32(x.v, static_cast<unsigned>(n))}; }
inline I i_round(F x) { return {_mm512_cvtps_epi32(x.v)}; }
inline void i_store8(std::int8_t* p, I x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v));
}
inline void i_store16(std::int16_t* p, I x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x.v));
}

inline __m256i in_pairs(__m256i x) {  // XRow::q's order
  return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                    0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)));
}
inline void i_store_pairs(std::int16_t* p, I x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), in_pairs(_mm512_cvtepi32_epi16(x.v)));
}

template <class T>
inline __m512i word(const T* p) {  // 32 bits, in every lane
  std::int32_t v;
  std::memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// One or two rows of x: bytes, so that a code vector splits in three instructions.
template <int L, int MB, int Chunks, bool Centred>
inline void dot_int4_bytes(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512i lo[MB][2], hi[MB][2];  // even and odd quads apart: shorter dependency chains
  for (int m = 0; m < MB; ++m) {
    const auto bias = [&](int c) { return word(minus8_word<MB>(x, m, k0 / kChunk + c)); };
    lo[m][0] = Centred ? bias(0) : _mm512_setzero_si512();
    lo[m][1] = Centred && Chunks == 2 ? bias(1) : _mm512_setzero_si512();
    hi[m][0] = hi[m][1] = _mm512_setzero_si512();
  }
  for (int v = 0; v < Chunks * 4; ++v) {
    const __m512i w = _mm512_loadu_si512(codes + v * 64);
    const __m512i w0 = _mm512_and_si512(w, nibble);
    const __m512i w1 = _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble);
    for (int m = 0; m < MB; ++m) {
      const std::int64_t k = k0 + v * 8;
      lo[m][0] = _mm512_dpbusd_epi32(lo[m][0], w0, word(lo_word<MB>(x, m, k)));
      lo[m][1] = _mm512_dpbusd_epi32(lo[m][1], w1, word(lo_word<MB>(x, m, k + 4)));
      if (L == 2) {
        hi[m][0] = _mm512_dpbusd_epi32(hi[m][0], w0, word(x[m].hi + k));
        hi[m][1] = _mm512_dpbusd_epi32(hi[m][1], w1, word(x[m].hi + k + 4));
      }
    }
  }
  for (int m = 0; m < MB; ++m) {
    s[m].v = _mm512_add_epi32(lo[m][0], lo[m][1]);
    if (L == 2)
      s[m].v = _mm512_add_epi32(s[m].v, _mm512_slli_epi32(_mm512_add_epi32(hi[m][0], hi[m][1]), 8));
  }
}

// More rows of x: 16-bit pairs, so that a row has one sum and not two limbs to put together.
template <int MB, int Chunks, bool Centred>
inline void dot_int4_pairs(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  const __m512i nibble = _mm512_set1_epi16(15);
  for (int m = 0; m < MB; ++m)
    s[m].v = Centred ? word(minus8_word<MB>(x, m, k0 / kChunk)) : _mm512_setzero_si512();
  if (Centred && Chunks == 2)
    for (int m = 0; m < MB; ++m)
      s[m].v = _mm512_add_epi32(s[m].v, word(minus8_word<MB>(x, m, k0 / kChunk + 1)));
  for (int v = 0; v < Chunks * 4; ++v) {
    const __m512i w = _mm512_loadu_si512(codes + v * 64);
    const __m512i part[4] = {
        _mm512_and_si512(w, nibble), _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble),
        _mm512_and_si512(_mm512_srli_epi16(w, 8), nibble), _mm512_srli_epi16(w, 12)};
    for (int i = 0; i < 4; ++i)
      for (int m = 0; m < MB; ++m)
        s[m].v = _mm512_dpwssd_epi32(s[m].v, part[i], word(q_word<MB>(x, m, k0 + v * 8 + i * 2)));
  }
}

template <int L, int MB, int Chunks, bool Centred>
inline void dot_int4(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  if constexpr (L == 1 || MB <= 2)
    dot_int4_bytes<L, MB, Chunks, Centred>(codes, x, k0, s);
  else
    dot_int4_pairs<MB, Chunks, Centred>(codes, x, k0, s);
}

template <int L, int MB, int Chunks>
inline void dot_int8(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  for (int m = 0; m < MB; ++m) s[m].v = _mm512_setzero_si512();
  if constexpr (L == 2) {
    for (int v = 0; v < Chunks * 8; ++v) {
      const __m512i w = _mm512_loadu_si512(codes + v * 64);
      const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8),
                    odd = _mm512_srai_epi16(w, 8);
      for (int m = 0; m < MB; ++m) {
        const std::int64_t k = k0 + v / 2 * 8 + v % 2 * 2;
        s[m].v = _mm512_dpwssd_epi32(s[m].v, even, word(q_word<MB>(x, m, k)));
        s[m].v = _mm512_dpwssd_epi32(s[m].v, odd, word(q_word<MB>(x, m, k + 4)));
      }
    }
  } else {  // signed codes as code + 128 (one xor), less 128 times the sum of q
    const __m512i bias = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int v = 0; v < Chunks * 8; ++v) {
      const __m512i w = _mm512_xor_si512(_mm512_loadu_si512(codes + v * 64), bias);
      for (int m = 0; m < MB; ++m)
        s[m].v = _mm512_dpbusd_epi32(s[m].v, w, word(lo_word<MB>(x, m, k0 + v * 4)));
    }
    for (int m = 0; m < MB; ++m)
      for (int c = 0; c < Chunks; ++c)
        s[m].v = _mm512_add_epi32(
            s[m].v, _mm512_slli_epi32(word(minus8_word<MB>(x, m, k0 / kChunk + c)), 4));
  }
}

}  // namespace
}  // namespace nibble::cpu
