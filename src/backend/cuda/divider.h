// Division by a number that a launch knows.
#pragma once
#include "backend/cuda/device.h"

namespace nibble::NIBBLE_CUDA_NS {

// n / by for n below 2^31, by multiplication: Granlund and Montgomery, "Division by invariant
// integers using multiplication" (1994).
struct Divider {
  std::uint32_t multiplier;
  int shift;
  __device__ __forceinline__ int of(int n) const {
    return static_cast<int>(static_cast<std::uint64_t>(n) * multiplier >> shift);
  }
};
inline Divider divider(int by) {
  int shift = 31;
  while ((std::int64_t{1} << (shift - 31)) < by) ++shift;
  const auto d = static_cast<std::uint64_t>(by);
  return {static_cast<std::uint32_t>(((std::uint64_t{1} << shift) + d - 1) / d), shift};
}

}  // namespace nibble::NIBBLE_CUDA_NS
