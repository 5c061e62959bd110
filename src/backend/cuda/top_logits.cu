// The 64 largest of rows of logits (ops/top_logits.h): a block keeps those of a run of a row, then
// a block a row does the same with what they kept. A warp sorts a list of 64 in its registers;
// lists meet in pairs: of two descending lists a and b the larger of a[i] and b[63 - i] are the 64
// largest, in an order that six more steps of a bitonic sort put right.
//
// A key is a number that sorts alike: the float's bits made ascending, then the id turned round, so
// that keys are distinct and the largest come first, the lowest id of equals before the others.
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kRun = kTopLogitsRun, kKept = kTopLogitsKept, kLanes = 32, kRunWarps = 16,
              kRowWarps = 32, kLists = kRun / kKept / kRunWarps;
static_assert(kKept == 2 * kLanes && kLists * kRunWarps * kKept == kRun);

struct List {
  std::uint64_t key[2];  // i of 64: key[i / 32] of lane i % 32
};

__device__ __forceinline__ std::uint64_t key_of(float x, int id) {
  const int bits = float_bits(x + 0.0f);  // one zero
  const std::uint32_t up = static_cast<std::uint32_t>(bits < 0 ? ~bits : bits ^ (1 << 31));
  return static_cast<std::uint64_t>(up) << 32 | (0xffffffffu - static_cast<std::uint32_t>(id));
}

__device__ __forceinline__ std::uint64_t key_at(std::uint64_t key, int lane) {
  const auto low = shuffle(static_cast<std::uint32_t>(key), lane),
             high = shuffle(static_cast<std::uint32_t>(key >> 32), lane);
  return static_cast<std::uint64_t>(high) << 32 | low;
}

// One step of bitonic sorts of `size`, descending.
__device__ __forceinline__ void sort_step(List& l, int size, int apart) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  if (apart == kLanes) {
    const std::uint64_t a = l.key[0], b = l.key[1];
    l.key[0] = a < b ? b : a, l.key[1] = a < b ? a : b;
    return;
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int i = lane + n * kLanes;
    const bool first = (i & apart) == 0, descends = (i & size & (kKept - 1)) == 0;
    const std::uint64_t mine = l.key[n], other = key_at(mine, lane ^ apart);
    l.key[n] = (mine < other) == (first == descends) ? other : mine;
  }
}

// With another list, given from its end: i is the other's 63 - i.
__device__ __forceinline__ void meet(List& l, const List& turned) {
#pragma unroll
  for (int n = 0; n < 2; ++n) l.key[n] = l.key[n] < turned.key[n] ? turned.key[n] : l.key[n];
#pragma unroll
  for (int apart = kLanes; apart > 0; apart /= 2) sort_step(l, kKept, apart);
}
__device__ __forceinline__ List turned(const std::uint64_t* list) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  return {list[kKept - 1 - lane], list[kLanes - 1 - lane]};
}

// All warps' lists meet; the first warp has what is left. room: [Warps * 64] of shared memory.
template <int Warps>
__device__ __forceinline__ void meet_all(List& l, std::uint64_t* room) {
  const int warp = static_cast<int>(threadIdx.x) / kLanes,
            lane = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll 1
  for (int half = Warps / 2; half > 0; half /= 2) {
    if (warp >= half && warp < 2 * half)
#pragma unroll
      for (int n = 0; n < 2; ++n) room[warp * kKept + n * kLanes + lane] = l.key[n];
    block_sync();
    if (warp < half) meet(l, turned(room + (warp + half) * kKept));
  }
}

// The lowest of the block's values, in all threads. least: [Warps] of shared memory.
template <int Warps>
__device__ __forceinline__ int lowest(int x, int* least) {
  const int tid = static_cast<int>(threadIdx.x);
  x = -warp_max(-x);
  if (tid % kLanes == 0) least[tid / kLanes] = x;
  block_sync();
  x = least[tid % Warps];
  return -warp_max(-x);
}

// Grid: x over runs of a row, y over rows. An id past the row's end is one of no key.
__global__ void __launch_bounds__(kRunWarps* kLanes)
    keep_of_run(const float* logits, int n, std::uint64_t* kept, int* bad) {
  start_next(), await_last();
  std::uint64_t* room = reinterpret_cast<std::uint64_t*>(shared_memory());
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kLanes, warp = tid / kLanes,
            run = static_cast<int>(blockIdx.x), runs = static_cast<int>(gridDim.x),
            row = static_cast<int>(blockIdx.y);
  const float* from = logits + static_cast<std::int64_t>(row) * n;
  int worst = 0x7fffffff;
  List l[kLists];
#pragma unroll
  for (int i = 0; i < 2 * kLists; ++i) {
    const int id = run * kRun + (i / 2 * kRunWarps + warp) * kKept + i % 2 * kLanes + lane;
    const float x = id < n ? from[id] : 0.0f;
    if (!(x < bits_float(0x7f800000)) && id < worst) worst = id;
    l[i / 2].key[i % 2] = id < n ? key_of(x, id) : 0;
  }
#pragma unroll
  for (int size = 2; size <= kKept; size *= 2)
#pragma unroll
    for (int apart = size / 2; apart > 0; apart /= 2)
#pragma unroll
      for (int i = 0; i < kLists; ++i) sort_step(l[i], size, apart);
#pragma unroll
  for (int i = 1; i < kLists; ++i)
    meet(l[0], {key_at(l[i].key[1], kLanes - 1 - lane), key_at(l[i].key[0], kLanes - 1 - lane)});
  meet_all<kRunWarps>(l[0], room);
  const std::int64_t at = static_cast<std::int64_t>(row) * runs + run;
  if (warp == 0)
#pragma unroll
    for (int i = 0; i < 2; ++i) kept[at * kKept + i * kLanes + lane] = l[0].key[i];
  worst = lowest<kRunWarps>(worst, reinterpret_cast<int*>(room + kRunWarps * kKept));
  if (tid == 0) bad[at] = worst;
}

// A block a row.
__global__ void __launch_bounds__(kRowWarps* kLanes)
    keep_of_row(const std::uint64_t* kept, const int* bad, int runs, float* values, int* ids,
                int* first_bad) {
  start_next(), await_last();
  std::uint64_t* room = reinterpret_cast<std::uint64_t*>(shared_memory());
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kLanes, warp = tid / kLanes;
  const std::int64_t row = blockIdx.x;
  kept += row * runs * kKept, bad += row * runs;
  int worst = 0x7fffffff;
  for (int i = tid; i < runs; i += kRowWarps * kLanes) worst = bad[i] < worst ? bad[i] : worst;
  constexpr int kAtOnce = 4;  // lists
  List l{};
#pragma unroll 1
  for (int first = warp; first < runs; first += kAtOnce * kRowWarps) {
    List x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int run = first + i * kRowWarps;
      x[i] = run < runs ? turned(kept + static_cast<std::int64_t>(run) * kKept) : List{};
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) meet(l, x[i]);
  }
  meet_all<kRowWarps>(l, room);
  worst = lowest<kRowWarps>(worst, reinterpret_cast<int*>(room + kRowWarps * kKept));
  if (tid == 0) first_bad[row] = worst == 0x7fffffff ? -1 : worst;
  if (warp > 0) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint64_t key = l.key[i];
    const auto up = static_cast<std::uint32_t>(key >> 32);
    const int bits = static_cast<int>(up >> 31 != 0 ? up ^ 0x80000000u : ~up);
    const std::int64_t at = row * kKept + i * kLanes + lane;
    ids[at] = key == 0 ? -1 : static_cast<int>(0xffffffffu - static_cast<std::uint32_t>(key));
    values[at] = key == 0 ? 0.0f : bits_float(bits);
  }
}

}  // namespace

void launch_top_logits(const Queue& q, const float* logits, int m, int n, void* scratch,
                       float* values, int* ids, int* bad) {
  const int runs = top_logits_runs(n);
  auto* kept = static_cast<std::uint64_t*>(scratch);
  int* bad_runs = reinterpret_cast<int*>(kept + static_cast<std::int64_t>(m) * runs * kKept);
  const auto shared = [](int warps) {
    return static_cast<std::size_t>(warps) * (kKept * sizeof(std::uint64_t) + sizeof(int));
  };
  launch(q, "top_logits", keep_of_run, dim3{static_cast<unsigned>(runs), static_cast<unsigned>(m)},
         kRunWarps * kLanes, shared(kRunWarps), logits, n, kept, bad_runs);
  launch(q, "top_logits", keep_of_row, dim3{static_cast<unsigned>(m)}, kRowWarps * kLanes,
         shared(kRowWarps), kept, bad_runs, runs, values, ids, bad);
}

}  // namespace nibble::NIBBLE_CUDA_NS
