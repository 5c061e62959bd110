// In the order of what they need.
// clang-format off
#include "backend/cpu/simd/words.inl"
#include "backend/cpu/simd/avx512.h"
#include "backend/cpu/simd/dot.inl"
#include "backend/cpu/simd/linear.inl"
#include "backend/cpu/simd/fill.inl"
// clang-format on

namespace nibble::cpu {

void avx512vnni_dots(Kernels& k) { fill_dots(k); }

}  // namespace nibble::cpu
