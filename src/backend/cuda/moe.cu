// The mixture of experts, besides its products (multiply.cu): choice of experts, grouping of the
// (token, slot) pairs that chose one, and the sum over slots and pieces in the CPU's order.
#include "backend/cuda/top_k.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kGroupThreads = 512, kLanes = 32, kMixThreads = kLanes * kMaxPieces;

// One warp a token.
__global__ void __launch_bounds__(kLanes) top_k(const float* logits, int experts, Choice c) {
  start_next(), await_last();
  const std::int64_t token = blockIdx.x;
  choose(logits + token * experts, experts, c.k, c.ids + token * c.k, c.weights + token * c.k,
         shared_memory());
}

// One block. Pairs are counted, experts get their tasks, pairs their places: in any order.
__global__ void __launch_bounds__(kGroupThreads)
    group(const int* ids, int m, int k, int experts, bool shared, Task* up, Task* down,
          int* count) {
  start_next(), await_last();
  const int tid = static_cast<int>(threadIdx.x);
  int* pairs = reinterpret_cast<int*>(shared_memory());  // [experts]
  int* first = pairs + experts;                          // [experts] tasks
  int* tasks = first + experts;                          // [1]
  for (int e = tid; e <= 2 * experts; e += kGroupThreads) pairs[e] = 0;
  block_sync();
  const auto expert = [&](int i) { return ids[i] >= 0 && ids[i] < experts ? ids[i] : -1; };
  for (int i = tid; i < m * k; i += kGroupThreads)
    if (expert(i) >= 0) atomic_add(pairs + expert(i), 1);
  block_sync();
  if (shared && tid + 1 == kGroupThreads) {
    const int at = atomic_add(tasks, 1);
    up[at].matrix = down[at].matrix = experts;
    up[at].rows = down[at].rows = m;
    for (int i = 0; i < m; ++i)
      up[at].x[i] = i, down[at].x[i] = up[at].y[i] = down[at].y[i] = m * k + i;
  }
  for (int e = tid; e < experts; e += kGroupThreads) {
    const int mine = pairs[e];
    pairs[e] = 0;
    if (mine == 0) continue;
    first[e] = atomic_add(tasks, (mine + kMaxRows - 1) / kMaxRows);
    for (int at = first[e], left = mine; left > 0; ++at, left -= kMaxRows) {
      up[at].matrix = down[at].matrix = e;
      up[at].rows = down[at].rows = left < kMaxRows ? left : kMaxRows;
    }
  }
  block_sync();
  for (int i = tid; i < m * k; i += kGroupThreads) {
    if (expert(i) < 0) continue;
    const int place = atomic_add(pairs + expert(i), 1), at = first[expert(i)] + place / kMaxRows,
              row = place % kMaxRows;
    up[at].x[row] = i / k, down[at].x[row] = i;
    up[at].y[row] = down[at].y[row] = i;
  }
  if (tid == 0) *count = *tasks;
}

// The same for gemm: pairs in the order of their experts, and which experts' they are.
__global__ void __launch_bounds__(kGroupThreads)
    group_rows(const int* ids, int m, int k, int experts, RowGroup* groups, int* order,
               int* count) {
  start_next(), await_last();
  const int tid = static_cast<int>(threadIdx.x);
  int* pairs = reinterpret_cast<int*>(shared_memory());  // [experts]
  int* first = pairs + experts;                          // [experts] places in order
  int* used = first + experts;                           // [2] groups, places
  for (int e = tid; e < 2 * experts + 2; e += kGroupThreads) pairs[e] = 0;
  block_sync();
  const auto expert = [&](int i) { return ids[i] >= 0 && ids[i] < experts ? ids[i] : -1; };
  for (int i = tid; i < m * k; i += kGroupThreads)
    if (expert(i) >= 0) atomic_add(pairs + expert(i), 1);
  block_sync();
  for (int e = tid; e < experts; e += kGroupThreads) {
    const int mine = pairs[e];
    pairs[e] = 0;
    if (mine == 0) continue;
    first[e] = atomic_add(used + 1, mine);
    int at = atomic_add(used, (mine + kGemmRows - 1) / kGemmRows);
    for (int done = 0; done < mine; done += kGemmRows)
      groups[at++] = {e, first[e] + done, mine - done < kGemmRows ? mine - done : kGemmRows};
  }
  block_sync();
  for (int i = tid; i < m * k; i += kGroupThreads)
    if (expert(i) >= 0) order[first[expert(i)] + atomic_add(pairs + expert(i), 1)] = i;
  if (tid == 0) *count = used[0];
}

// A thread a column and piece; a warp has 32 columns of a piece.
__global__ void __launch_bounds__(kMixThreads) mix(const __grid_constant__ MixArgs a) {
  start_next(), await_last();
  float* sums = reinterpret_cast<float*>(shared_memory());  // [piece][32]
  const int token = static_cast<int>(blockIdx.y), tid = static_cast<int>(threadIdx.x),
            lane = tid % kLanes, piece = tid / kLanes,
            c = static_cast<int>(blockIdx.x) * kLanes + lane;
  const std::int64_t pair = static_cast<std::int64_t>(token) * a.k,
                     pitch = static_cast<std::int64_t>(kMaxPieces) * a.n, at = piece * a.n + c;
  float sum = 0;
  bool good = true;
  if (c < a.n) {
    constexpr int kRun = 8;
    float shared = a.shared_parts[token * pitch + at], gate = a.shared[token];
#pragma unroll 1
    for (int from = 0; from < a.k; from += kRun) {
      float part[kRun], weight[kRun];
      int id[kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) {  // no load waits for another
        const std::int64_t s = pair + (from + i < a.k ? from + i : from);
        part[i] = a.parts[s * pitch + at], weight[i] = a.weights[s];
        id[i] = a.ids[s];
      }
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        good = good && id[i] >= 0 && id[i] < a.experts;
        sum = from + i < a.k ? fmaf(weight[i], part[i], sum) : sum;
      }
    }
    sum = fmaf(sigmoid(gate), shared, sum);
  }
  sums[tid] = sum;
  block_sync();
  if (piece > 0 || c >= a.n) return;
  const auto of = [&](int p) { return sums[p * kLanes + lane]; };
  const float y = ((of(0) + of(1)) + (of(2) + of(3))) + ((of(4) + of(5)) + (of(6) + of(7)));
  a.y[static_cast<std::int64_t>(token) * a.n + c] = good ? y : bits_float(0x7fffffff);
}

// Of whole rows: a thread four columns of a token.
__global__ void __launch_bounds__(kMixThreads) mix_rows(const __grid_constant__ MixArgs a) {
  start_next(), await_last();
  const int token = static_cast<int>(blockIdx.y),
            c = static_cast<int>(blockIdx.x * kMixThreads + threadIdx.x) * 4;
  if (c >= a.n) return;
  const auto add = [&](float weight, const float* part, float(&sum)[4]) {
    if (a.n % 4 == 0) {
      const float4 v = *reinterpret_cast<const float4*>(part + c);
      sum[0] = fmaf(weight, v.x, sum[0]), sum[1] = fmaf(weight, v.y, sum[1]);
      sum[2] = fmaf(weight, v.z, sum[2]), sum[3] = fmaf(weight, v.w, sum[3]);
    } else {
      for (int i = 0; i < 4 && c + i < a.n; ++i) sum[i] = fmaf(weight, part[c + i], sum[i]);
    }
  };
  float sum[4] = {};
  bool good = true;
#pragma unroll 4
  for (int i = 0; i < a.k; ++i) {
    const std::int64_t pair = static_cast<std::int64_t>(token) * a.k + i;
    good = good && a.ids[pair] >= 0 && a.ids[pair] < a.experts;
    add(a.weights[pair], a.parts + pair * a.n, sum);
  }
  add(sigmoid(a.shared[token]), a.shared_parts + static_cast<std::int64_t>(token) * a.n, sum);
  for (int i = 0; i < 4 && c + i < a.n; ++i)
    a.y[static_cast<std::int64_t>(token) * a.n + c + i] = good ? sum[i] : bits_float(0x7fffffff);
}

}  // namespace

void launch_top_k(const Queue& q, const float* logits, int m, int experts, const Choice& c) {
  launch(q, "top_k", top_k, dim3{static_cast<unsigned>(m)}, kLanes, top_k_bytes(experts, c.k),
         logits, experts, c);
}
void launch_group(const Queue& q, const int* ids, int m, int k, int experts, bool shared, Task* up,
                  Task* down, int* count) {
  launch(q, "group", group, dim3{1}, kGroupThreads,
         sizeof(int) * static_cast<std::size_t>(2 * experts + 1), ids, m, k, experts, shared, up,
         down, count);
}
void launch_group_rows(const Queue& q, const int* ids, int m, int k, int experts, RowGroup* groups,
                       int* order, int* count) {
  launch(q, "group_rows", group_rows, dim3{1}, kGroupThreads,
         sizeof(int) * static_cast<std::size_t>(2 * experts + 2), ids, m, k, experts, groups, order,
         count);
}
void launch_mix(const Queue& q, const MixArgs& a) {
  const dim3 grid{static_cast<unsigned>((a.n + kLanes - 1) / kLanes), static_cast<unsigned>(a.m)};
  launch(q, "mix", mix, grid, kMixThreads, kMixThreads * sizeof(float), a);
}
void launch_mix_rows(const Queue& q, const MixArgs& a) {
  constexpr int kColumns = 4 * kMixThreads;
  const dim3 grid{static_cast<unsigned>((a.n + kColumns - 1) / kColumns),
                  static_cast<unsigned>(a.m)};
  launch(q, "mix_rows", mix_rows, grid, kMixThreads, 0, a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
