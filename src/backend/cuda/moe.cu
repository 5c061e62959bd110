// The mixture of experts, besides its products (multiply.cu): choice of experts, grouping of the
// (token, slot) pairs that chose one, and the sum over slots and pieces in the CPU's order.
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kThreads = 256, kMixThreads = 64, kLanes = 32;

// One warp a token. NaN is never above another value; the first expert left is, where it is NaN.
__global__ void __launch_bounds__(kLanes)
    top_k(const float* all, int experts, int k, int* ids, float* weights) {
  start_next(), await_last();
  const int lane = static_cast<int>(threadIdx.x);
  const float* logits = all + static_cast<std::int64_t>(blockIdx.x) * experts;
  ids += static_cast<std::int64_t>(blockIdx.x) * k,
      weights += static_cast<std::int64_t>(blockIdx.x) * k;
  char* taken = shared_memory();                                          // [experts]
  float* exps = reinterpret_cast<float*>(taken + (experts + 3) / 4 * 4);  // [k]
  for (int e = lane; e < experts; e += kLanes) taken[e] = 0;
  warp_sync();
  float top = 0, sum = 0;
  for (int s = 0; s < k; ++s) {
    int first = experts, best = experts;  // the lowest left, the largest left
    float most = 0;
    for (int e = lane; e < experts; e += kLanes) {
      if (taken[e] != 0) continue;
      if (first == experts) first = e;
      const float x = logits[e];
      if (x == x && (best == experts || x > most)) best = e, most = x;
    }
    first = -warp_max(-first);
    for (int n = kLanes / 2; n > 0; n /= 2) {
      const int other = shuffle_xor(best, n);
      const float value = shuffle_xor(most, n);
      if (other < experts && (best == experts || value > most || (value == most && other < best)))
        best = other, most = value;
    }
    const float lowest = logits[first];
    if (lowest != lowest) best = first, most = lowest;
    if (s == 0) top = most;
    const float e = exp_cut(most - top);
    sum = sum + e;
    warp_sync();
    if (lane == 0) taken[best] = 1, ids[s] = best, exps[s] = e;
    warp_sync();
  }
  for (int s = lane; s < k; s += kLanes) weights[s] = exps[s] / sum;
}

// One block; a thread an expert, which looks at every pair.
__global__ void __launch_bounds__(kThreads)
    group(const int* ids, int m, int k, int experts, Task* up, Task* down, int* count) {
  start_next(), await_last();
  int* tasks = reinterpret_cast<int*>(shared_memory());
  if (threadIdx.x == 0) *tasks = 0;
  block_sync();
  for (int e = static_cast<int>(threadIdx.x); e < experts; e += kThreads) {
    int mine = 0;
    for (int i = 0; i < m * k; ++i) mine += ids[i] == e;
    if (mine == 0) continue;
    int at = atomic_add(tasks, (mine + kMaxRows - 1) / kMaxRows), rows = 0;
    for (int i = 0; i < m * k; ++i) {
      if (ids[i] != e) continue;
      up[at].x[rows] = i / k, down[at].x[rows] = i;
      up[at].y[rows] = down[at].y[rows] = i;
      if (++rows < kMaxRows && --mine > 0) continue;
      if (rows == kMaxRows) --mine;
      up[at].matrix = down[at].matrix = e;
      up[at].rows = down[at].rows = rows;
      ++at, rows = 0;
    }
  }
  block_sync();
  if (threadIdx.x == 0) *count = *tasks;
}

__global__ void __launch_bounds__(kMixThreads) mix(const __grid_constant__ MixArgs a) {
  start_next(), await_last();
  const int token = static_cast<int>(blockIdx.y),
            c = static_cast<int>(blockIdx.x * kMixThreads + threadIdx.x);
  if (c >= a.n) return;
  const float shared = sigmoid(a.shared[token]);
  float sum[kMaxPieces];
#pragma unroll
  for (int p = 0; p < kMaxPieces; ++p) sum[p] = 0;
  bool good = true;
#pragma unroll 4  // no load waits for another
  for (int s = 0; s < a.k; ++s) {
    const std::int64_t pair = static_cast<std::int64_t>(token) * a.k + s;
    const int id = a.ids[pair];
    good = good && id >= 0 && id < a.experts;
    const float w = a.weights[pair];
    const float* part = a.parts + pair * kMaxPieces * a.n + c;
#pragma unroll
    for (int p = 0; p < kMaxPieces; ++p)
      sum[p] = fmaf(w, part[static_cast<std::int64_t>(p) * a.n], sum[p]);
  }
  const float* part = a.shared_parts + static_cast<std::int64_t>(token) * kMaxPieces * a.n + c;
#pragma unroll
  for (int p = 0; p < kMaxPieces; ++p)
    sum[p] = fmaf(shared, part[static_cast<std::int64_t>(p) * a.n], sum[p]);
  const float y = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  a.y[static_cast<std::int64_t>(token) * a.n + c] = good ? y : bits_float(0x7fffffff);
}

}  // namespace

void launch_top_k(const Queue& q, const float* logits, int m, int experts, int k, int* ids,
                  float* weights) {
  launch(q, "top_k", top_k, dim3{static_cast<unsigned>(m)}, kLanes,
         static_cast<std::size_t>((experts + 3) / 4 * 4 + k * 4), logits, experts, k, ids, weights);
}
void launch_group(const Queue& q, const int* ids, int m, int k, int experts, Task* up, Task* down,
                  int* count) {
  launch(q, "group", group, dim3{1}, kThreads, sizeof(int), ids, m, k, experts, up, down, count);
}
void launch_mix(const Queue& q, const MixArgs& a) {
  const dim3 grid{static_cast<unsigned>((a.n + kMixThreads - 1) / kMixThreads),
                  static_cast<unsigned>(a.m)};
  launch(q, "mix", mix, grid, kMixThreads, 0, a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
