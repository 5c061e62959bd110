// The 64 largest of rows of logits (ops/top_logits.h): blocks sort runs of a row and keep the first
// 64 of each, then a block a row does the same with what they kept.
//
// A key is a number that sorts alike: the float's bits made ascending, then the id turned round, so
// that keys are distinct and the largest come first, the lowest id of equals before the others.
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kThreads = 512, kRun = kTopLogitsRun, kKept = kTopLogitsKept, kLanes = 32;

__device__ __forceinline__ std::uint64_t key_of(float x, int id) {
  const int bits = float_bits(x + 0.0f);  // one zero
  const std::uint32_t up = static_cast<std::uint32_t>(bits < 0 ? ~bits : bits ^ (1 << 31));
  return static_cast<std::uint64_t>(up) << 32 | (0xffffffffu - static_cast<std::uint32_t>(id));
}

// keys [kRun] of shared memory, descending: a bitonic sort.
__device__ __forceinline__ void sort_run(std::uint64_t* keys) {
#pragma unroll 1
  for (int size = 2; size <= kRun; size *= 2)
#pragma unroll 1
    for (int apart = size / 2; apart > 0; apart /= 2) {
      block_sync();
#pragma unroll 2
      for (int i = static_cast<int>(threadIdx.x); i < kRun / 2; i += kThreads) {
        const int low = i / apart * 2 * apart + i % apart;
        const std::uint64_t a = keys[low], b = keys[low + apart];
        if ((a < b) == ((low & size) == 0)) keys[low] = b, keys[low + apart] = a;
      }
    }
  block_sync();
}

// The lowest of the block's values, in all threads. least: [kThreads / 32] of shared memory.
__device__ __forceinline__ int lowest(int x, int* least) {
  const int tid = static_cast<int>(threadIdx.x);
  x = -warp_max(-x);
  if (tid % kLanes == 0) least[tid / kLanes] = x;
  block_sync();
  x = least[tid % (kThreads / kLanes)];
  return -warp_max(-x);
}

// Grid: x over runs of a row, y over rows. An id past the row's end is one of no key.
__global__ void __launch_bounds__(kThreads)
    keep_of_run(const float* logits, int n, std::uint64_t* kept, int* bad) {
  start_next(), await_last();
  std::uint64_t* keys = reinterpret_cast<std::uint64_t*>(shared_memory());
  const int tid = static_cast<int>(threadIdx.x), run = static_cast<int>(blockIdx.x),
            runs = static_cast<int>(gridDim.x), row = static_cast<int>(blockIdx.y);
  const float* from = logits + static_cast<std::int64_t>(row) * n;
  int worst = 0x7fffffff;
#pragma unroll 4
  for (int i = tid; i < kRun; i += kThreads) {
    const int id = run * kRun + i;
    const float x = id < n ? from[id] : 0.0f;
    if (!(x < bits_float(0x7f800000)) && id < worst) worst = id;
    keys[i] = id < n ? key_of(x, id) : 0;
  }
  sort_run(keys);
  const std::int64_t at = static_cast<std::int64_t>(row) * runs + run;
  if (tid < kKept) kept[at * kKept + tid] = keys[tid];
  worst = lowest(worst, reinterpret_cast<int*>(keys + kRun));
  if (tid == 0) bad[at] = worst;
}

// A block a row. As many keys as a run holds at a time, the best 64 so far among them.
__global__ void __launch_bounds__(kThreads)
    keep_of_row(const std::uint64_t* kept, const int* bad, int runs, float* values, int* ids,
                int* first_bad) {
  start_next(), await_last();
  std::uint64_t* keys = reinterpret_cast<std::uint64_t*>(shared_memory());
  const int tid = static_cast<int>(threadIdx.x);
  const std::int64_t row = blockIdx.x;
  kept += row * runs * kKept, bad += row * runs;
  const int all = runs * kKept;
  int worst = 0x7fffffff;
  for (int i = tid; i < runs; i += kThreads) worst = bad[i] < worst ? bad[i] : worst;
#pragma unroll 1
  for (int done = 0; done < all;) {
    const int hold = done == 0 ? 0 : kKept;  // keys[0 .. hold) stay
    for (int i = tid; i < kRun - hold; i += kThreads)
      keys[hold + i] = done + i < all ? kept[done + i] : 0;
    done += kRun - hold;
    sort_run(keys);
  }
  worst = lowest(worst, reinterpret_cast<int*>(keys + kRun));
  if (tid == 0) first_bad[row] = worst == 0x7fffffff ? -1 : worst;
  if (tid >= kKept) return;
  const std::uint64_t key = keys[tid];
  const auto up = static_cast<std::uint32_t>(key >> 32);
  const int bits = static_cast<int>(up >> 31 != 0 ? up ^ 0x80000000u : ~up);
  ids[row * kKept + tid] =
      key == 0 ? -1 : static_cast<int>(0xffffffffu - static_cast<std::uint32_t>(key));
  values[row * kKept + tid] = key == 0 ? 0.0f : bits_float(bits);
}

}  // namespace

void launch_top_logits(const Queue& q, const float* logits, int m, int n, void* scratch,
                       float* values, int* ids, int* bad) {
  const int runs = top_logits_runs(n);
  const std::size_t shared = kRun * sizeof(std::uint64_t) + kThreads / kLanes * sizeof(int);
  auto* kept = static_cast<std::uint64_t*>(scratch);
  int* bad_runs = reinterpret_cast<int*>(kept + static_cast<std::int64_t>(m) * runs * kKept);
  launch(q, "top_logits", keep_of_run, dim3{static_cast<unsigned>(runs), static_cast<unsigned>(m)},
         kThreads, shared, logits, n, kept, bad_runs);
  launch(q, "top_logits", keep_of_row, dim3{static_cast<unsigned>(m)}, kThreads, shared, kept,
         bad_runs, runs, values, ids, bad);
}

}  // namespace nibble::NIBBLE_CUDA_NS
