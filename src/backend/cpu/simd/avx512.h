// Sixteen lanes as one AVX-512 register. scalar.h says what each means.
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

constexpr int kHeldVectors = 16;  // sums that stay in registers beside what they take

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
inline std::int32_t i_largest(I x) { return _mm512_reduce_max_epi32(x.v); }
inline std::int32_t i_sum(I x) { return _mm512_reduce_add_epi32(x.v); }
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

// What dot.inl is written in.
using V = __m512i;
constexpr int kHalves = 1, kRegisters = 32;
inline V& half(I& x, int) { return x.v; }
inline V v_load(const std::uint8_t* p) {
  V v = _mm512_loadu_si512(p);
  asm("" : "+v"(v));  // once: GCC would make it an operand of every instruction that takes it
  return v;
}
inline V v_zero() { return _mm512_setzero_si512(); }
inline V v_set8(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline V v_set16(int x) { return _mm512_set1_epi16(static_cast<short>(x)); }
inline V v_and(V x, V y) { return _mm512_and_si512(x, y); }
inline V v_xor(V x, V y) { return _mm512_xor_si512(x, y); }
inline V v_add16(V x, V y) { return _mm512_add_epi16(x, y); }
inline V v_add(V x, V y) { return _mm512_add_epi32(x, y); }
inline V v_shl(V x, int n) { return _mm512_slli_epi32(x, static_cast<unsigned>(n)); }
inline V v_sar(V x, int n) { return _mm512_srai_epi32(x, static_cast<unsigned>(n)); }
inline V v_shl16(V x, int n) { return _mm512_slli_epi16(x, static_cast<unsigned>(n)); }
inline V v_shr16(V x, int n) { return _mm512_srli_epi16(x, static_cast<unsigned>(n)); }
inline V v_sar16(V x, int n) { return _mm512_srai_epi16(x, static_cast<unsigned>(n)); }
inline V v_madd(V x, V y) { return _mm512_madd_epi16(x, y); }
inline V v_maddubs(V x, V y) { return _mm512_maddubs_epi16(x, y); }
template <class T>
inline V word(const T* p) {  // 32 bits, in every lane
  std::int32_t v;
  std::memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}
#ifdef __AVX512VNNI__
#define NIBBLE_VNNI 1
inline V v_dpbusd(V sum, V x, V y) { return _mm512_dpbusd_epi32(sum, x, y); }
inline V v_dpwssd(V sum, V x, V y) { return _mm512_dpwssd_epi32(sum, x, y); }
#endif

}  // namespace
}  // namespace nibble::cpu
