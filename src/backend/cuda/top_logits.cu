// The 64 largest of rows of logits (ops/top_logits.h): a block keeps those of a run of a row, then
// a block a row does the same with what they kept. Lists of 64 are sorted, a warp each, and then
// meet in pairs: of two descending lists a and b the larger of a[i] and b[63 - i] are the 64
// largest, in an order that six more steps of a bitonic sort put right.
//
// A key is a number that sorts alike: the float's bits made ascending, then the id turned round, so
// that keys are distinct and the largest come first, the lowest id of equals before the others.
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kThreads = 512, kRun = kTopLogitsRun, kKept = kTopLogitsKept, kLanes = 32,
              kWarps = kThreads / kLanes, kLists = kRun / kKept;
static_assert(kKept == 2 * kLanes && kLists * kKept == kRun && (kLists & (kLists - 1)) == 0);

__device__ __forceinline__ std::uint64_t key_of(float x, int id) {
  const int bits = float_bits(x + 0.0f);  // one zero
  const std::uint32_t up = static_cast<std::uint32_t>(bits < 0 ? ~bits : bits ^ (1 << 31));
  return static_cast<std::uint64_t>(up) << 32 | (0xffffffffu - static_cast<std::uint32_t>(id));
}

// One step of bitonic sorts of `size`, descending, in a list of shared memory; whole warp.
__device__ __forceinline__ void sort_step(std::uint64_t* list, int size, int apart) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, low = 2 * lane - (lane & (apart - 1));
  const std::uint64_t a = list[low], b = list[low + apart];
  if ((a < b) == ((low & size & (kKept - 1)) == 0)) list[low] = b, list[low + apart] = a;
}

// keys [kRun] of shared memory: the largest 64 come first, descending. Sorted: every list is.
__device__ __forceinline__ void keep_largest(std::uint64_t* keys, bool sorted) {
  const int warp = static_cast<int>(threadIdx.x) / kLanes,
            lane = static_cast<int>(threadIdx.x) % kLanes;
  block_sync();
  if (!sorted)
#pragma unroll
    for (int size = 2; size <= kKept; size *= 2)
#pragma unroll
      for (int apart = size / 2; apart > 0; apart /= 2) {
#pragma unroll
        for (int list = warp; list < kLists; list += kWarps)
          sort_step(keys + list * kKept, size, apart);
        warp_sync();
      }
#pragma unroll
  for (int lists = kLists / 2; lists > 0; lists /= 2) {
    block_sync();
    for (int list = warp; list < lists; list += kWarps) {
      std::uint64_t* const mine = keys + list * kKept;
      const std::uint64_t* const other = mine + lists * kKept;
#pragma unroll
      for (int i = lane; i < kKept; i += kLanes) {
        const std::uint64_t a = mine[i], b = other[kKept - 1 - i];
        mine[i] = a < b ? b : a;
      }
#pragma unroll
      for (int apart = kKept / 2; apart > 0; apart /= 2) {
        warp_sync();
        sort_step(mine, kKept, apart);
      }
    }
  }
  block_sync();
}

// The lowest of the block's values, in all threads. least: [kWarps] of shared memory.
__device__ __forceinline__ int lowest(int x, int* least) {
  const int tid = static_cast<int>(threadIdx.x);
  x = -warp_max(-x);
  if (tid % kLanes == 0) least[tid / kLanes] = x;
  block_sync();
  x = least[tid % kWarps];
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
  keep_largest(keys, false);
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
    keep_largest(keys, true);
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
  const std::size_t shared = kRun * sizeof(std::uint64_t) + kWarps * sizeof(int);
  auto* kept = static_cast<std::uint64_t*>(scratch);
  int* bad_runs = reinterpret_cast<int*>(kept + static_cast<std::int64_t>(m) * runs * kKept);
  launch(q, "top_logits", keep_of_run, dim3{static_cast<unsigned>(runs), static_cast<unsigned>(m)},
         kThreads, shared, logits, n, kept, bad_runs);
  launch(q, "top_logits", keep_of_row, dim3{static_cast<unsigned>(m)}, kThreads, shared, kept,
         bad_runs, runs, values, ids, bad);
}

}  // namespace nibble::NIBBLE_CUDA_NS
