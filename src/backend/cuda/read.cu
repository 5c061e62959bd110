// How fast the device reads its memory: what every other kernel is measured against.
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kThreads = 512;

__global__ void __launch_bounds__(kThreads) read(const uint4* p, std::int64_t n, int* sum) {
  start_next(), await_last();
  std::uint32_t s = 0;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
#pragma unroll 8
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += step) {
    const uint4 v = p[i];
    s += v.x ^ v.y ^ v.z ^ v.w;
  }
  if (s == 0x12345678u) *sum = static_cast<int>(s);  // so that nothing is left out
}

}  // namespace

void launch_read(const Queue& q, const void* p, std::size_t bytes, int* sum) {
  launch(q, "read", read, dim3{static_cast<unsigned>(q.multiprocessors) * 16}, kThreads, 0,
         static_cast<const uint4*>(p), static_cast<std::int64_t>(bytes / 16), sum);
}

}  // namespace nibble::NIBBLE_CUDA_NS
