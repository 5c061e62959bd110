// In the order of what they need.
// clang-format off
#include "backend/cpu/simd/words.inl"
#include "backend/cpu/simd/avx2.h"
#include "backend/cpu/simd/dot.inl"
#include "backend/cpu/simd/linear.inl"
#include "backend/cpu/simd/rowwise.inl"
#include "backend/cpu/simd/attention.inl"
#include "backend/cpu/simd/delta_net.inl"
#include "backend/cpu/simd/moe.inl"
#include "backend/cpu/simd/fill.inl"
#include "backend/cpu/simd/table.inl"
// clang-format on

namespace nibble::cpu {

const Kernels& avx2_kernels() {
  static constexpr Kernels table = make_table("avx2");
  return table;
}

}  // namespace nibble::cpu
