// Rows of one sequence lie together: where they end, as a device finds it.
#pragma once
#include "backend/cuda/kernels.h"

namespace nibble::NIBBLE_CUDA_NS {

// Rows come by copies, which no launch overlaps: where they are few, they are read before
// await_last().
__device__ __forceinline__ int slot_of(const Place* rows, int i, bool early) {
  return early ? load_fresh(&rows[i].slot) : rows[i].slot;
}
// Rows [first, first + result) of one sequence; 0 where `first` is not its first. By whole warps.
__device__ __forceinline__ int run_length(const Place* rows, int first, int m, bool early) {
  const int slot = slot_of(rows, first, early), lane = static_cast<int>(threadIdx.x) % 32;
  if (first > 0 && slot_of(rows, first - 1, early) == slot) return 0;
  int last = first;
  for (const int stride : {32, 1})  // the slot's rows lie together
    for (int n = 32; n == 32;) {
      const int row = last + stride * (lane + 1);
      n = first_lane(row >= m || slot_of(rows, row, early) != slot);
      last += n * stride;
    }
  return last + 1 - first;
}

}  // namespace nibble::NIBBLE_CUDA_NS
