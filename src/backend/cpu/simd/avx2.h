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

constexpr int kHeldVectors = 4;  // sums that stay in registers beside what they take

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
template <class Op>
inline std::int32_t i_fold(I x, Op op) {  // of 128 bits
  const auto halves = [&](__m256i v) {
    return op(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  };
  __m128i v = op(halves(x.a), halves(x.b));
  v = op(v, _mm_shuffle_epi32(v, 0x4e));
  return _mm_cvtsi128_si32(op(v, _mm_shuffle_epi32(v, 0xb1)));
}
inline std::int32_t i_largest(I x) {
  return i_fold(x, [](__m128i a, __m128i b) { return _mm_max_epi32(a, b); });
}
inline std::int32_t i_sum(I x) {
  return i_fold(x, [](__m128i a, __m128i b) { return _mm_add_epi32(a, b); });
}
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

// What dot.inl is written in: half of the sixteen lanes at a time, so that all sums of eight rows
// of x stay in registers.
using V = __m256i;
constexpr int kHalves = 2, kRegisters = 16;
inline V& half(I& x, int h) { return h == 0 ? x.a : x.b; }
inline V v_load(const std::uint8_t* p) { return load256(p); }
inline V v_zero() { return _mm256_setzero_si256(); }
inline V v_set8(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
inline V v_set16(int x) { return _mm256_set1_epi16(static_cast<short>(x)); }
inline V v_and(V x, V y) { return _mm256_and_si256(x, y); }
inline V v_xor(V x, V y) { return _mm256_xor_si256(x, y); }
inline V v_add16(V x, V y) { return _mm256_add_epi16(x, y); }
inline V v_add(V x, V y) { return _mm256_add_epi32(x, y); }
inline V v_shl(V x, int n) { return _mm256_slli_epi32(x, n); }
inline V v_sar(V x, int n) { return _mm256_srai_epi32(x, n); }
inline V v_shl16(V x, int n) { return _mm256_slli_epi16(x, n); }
inline V v_shr16(V x, int n) { return _mm256_srli_epi16(x, n); }
inline V v_sar16(V x, int n) { return _mm256_srai_epi16(x, n); }
inline V v_madd(V x, V y) { return _mm256_madd_epi16(x, y); }
inline V v_maddubs(V x, V y) { return _mm256_maddubs_epi16(x, y); }
template <class T>
inline V word(const T* p) {  // 32 bits, in every lane
  std::int32_t v;
  std::memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}
#if defined(__AVX512VL__) && defined(__AVX512VNNI__)  // only tests build it so
#define NIBBLE_VNNI 1
inline V v_dpbusd(V sum, V x, V y) { return _mm256_dpbusd_epi32(sum, x, y); }
inline V v_dpwssd(V sum, V x, V y) { return _mm256_dpwssd_epi32(sum, x, y); }
#elif defined(__AVXVNNI__)
#define NIBBLE_VNNI 1
inline V v_dpbusd(V sum, V x, V y) { return _mm256_dpbusd_avx_epi32(sum, x, y); }
inline V v_dpwssd(V sum, V x, V y) { return _mm256_dpwssd_avx_epi32(sum, x, y); }
#endif

}  // namespace
}  // namespace nibble::cpu
