// In the order of what they need.
// clang-format off
#include "backend/cpu/simd/words.inl"
#include "backend/cpu/simd/avx2.h"
#include "backend/cpu/simd/dot.inl"
#include "backend/cpu/simd/linear.inl"
#include "backend/cpu/simd/fill.inl"
// clang-format on

namespace nibble::cpu {

const Kernels& avxvnni_kernels() {
  static const Kernels table = [] {
    Kernels k = avx2_kernels();
    k.name = "avx-vnni";
    fill_dots(k);
    return k;
  }();
  return table;
}

}  // namespace nibble::cpu
