// Attention of many rows, 8 of one sequence at a time: attention.cu's sums, bit for bit, with keys
// and values read once for 8 rows.
//
// A block is a split, a query head and 8 rows: scores of the split (a thread a position, all rows),
// a warp a row for its weights, then a thread an output dim.
#include "backend/cuda/kernels.h"
#include "backend/cuda/split.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kRows = kAttendRows, kThreads = 32 * kRows, kRun = 16;

__global__ void __launch_bounds__(kThreads) attend_rows(const __grid_constant__ AttendArgs a) {
  start_next(), await_last();
  const int split = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y),
            row0 = static_cast<int>(blockIdx.z) * kRows, tid = static_cast<int>(threadIdx.x),
            rows = a.m - row0 < kRows ? a.m - row0 : kRows;
  const KvLayer& c = a.cache;
  const int hd = c.head_dim, kv = head / (a.heads / c.kv_heads), begin = split * kSplit;
  int count[kRows], most = 0, least = kSplit;  // positions from begin on that a row sees
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int past = r < rows ? a.rows[row0 + r].position + 1 - begin : 0;
    count[r] = past < 0 ? 0 : past < kSplit ? past : kSplit;
    most = count[r] > most ? count[r] : most, least = count[r] < least ? count[r] : least;
  }
  if (most == 0) return;
  const int blocks = (most + kBlock - 1) / kBlock;
  float* q = reinterpret_cast<float*>(shared_memory());  // [kRows][head_dim]
  float* score = q + kRows * hd;                         // [512][kRows], later weights
  float* share = score + kSplit * kRows;                 // [8][kRows], by block
  float* sums = share + kSplit / kBlock * kRows;         // [kRows]
  float* top = sums + kRows;                             // [kRows]
  const auto at = [&](int r) { return static_cast<std::int64_t>(row0 + r) * a.heads + head; };
  for (int i = tid; i < rows * hd; i += kThreads) q[i] = a.q[at(i / hd) * hd + i % hd];
  block_sync();

  const std::int64_t first = vector_index(c, {a.rows[row0].slot, begin}, kv);
  const std::int64_t head_at = (first - begin) * hd;
  const float none = bits_float(static_cast<int>(0xff800000u));
  for (int i = tid; i < blocks * kBlock; i += kThreads) {
    float s[kRows] = {};
    each_eight<2>(c, head_at + key_index(c, begin + i, 0), [&](int d, const float(&k)[8]) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4* of = reinterpret_cast<const float4*>(q + r * hd + d);
        const float4 low = of[0], high = of[1];
        const float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 8; ++j) s[r] = fmaf(x[j], k[j], s[r]);
      }
    });
    const float scale = c.fixed ? a.scale * c.key_scales[first + i] : a.scale;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      score[i * kRows + r] = i < count[r] ? s[r] * scale + 0.0f : none;
  }
  block_sync();
  {
    const int r = tid / kLanes;
    int mine = 0;  // count[r]
#pragma unroll
    for (int i = 0; i < kRows; ++i) mine = i == r ? count[i] : mine;
    const int lane = tid % kLanes;
    float mine_top = none, mine_sum = 0;  // of block `lane`
    for (int b = 0; b < blocks; ++b) {
      if (b * kBlock >= mine) break;
      float* s = score + (b * kBlock + lane) * kRows + r;
      const Softened of = soften({s[0], s[kLanes * kRows]});
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int64_t p = first + b * kBlock + lane + i * kLanes;
        s[i * kLanes * kRows] = c.fixed ? of.e[i] * c.value_scales[p] : of.e[i];
      }
      if (lane == b) mine_top = of.top, mine_sum = of.sum;
    }
    const Shares of = share_out(mine_top, mine_sum);
    if (lane < kSplit / kBlock) share[lane * kRows + r] = of.share;
    if (lane == 0) sums[r] = of.sum, top[r] = of.top;
  }
  block_sync();

  for (int d = tid; d < hd; d += kThreads) {
    float all[kRows] = {};
    for (int b = 0; b < blocks; ++b) {
      float o[kRows] = {};
      const int n = most - b * kBlock < kBlock ? most - b * kBlock : kBlock;
      const bool whole = least >= (b + 1) * kBlock;
      const std::int64_t from = (first + b * kBlock) * hd + d;
      const auto add = [&](const auto* v) {
        for (int p = 0; p < n; p += kRun) {
          float x[kRun];
#pragma unroll
          for (int i = 0; i < kRun; ++i)
            x[i] = static_cast<float>(v[static_cast<std::int64_t>(p + i < n ? p + i : n - 1) * hd]);
#pragma unroll
          for (int i = 0; i < kRun; ++i) {
            const int position = b * kBlock + p + i;
            const float4* of = reinterpret_cast<const float4*>(score + position * kRows);
            const float4 low = of[0], high = of[1];
            const float w[kRows] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int r = 0; r < kRows; ++r)
              if (whole || position < count[r]) o[r] = fmaf(w[r], x[i], o[r]);
          }
        }
      };
      if (c.fixed)
        add(static_cast<const std::int16_t*>(c.values) + from);
      else
        add(static_cast<const float*>(c.values) + from);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (b * kBlock < count[r]) all[r] = fmaf(share[b * kRows + r], o[r], all[r]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (count[r] > 0)
        finish(a, at(r), a.rows[row0 + r].position, split, d, all[r], sums[r], top[r]);
  }
}

}  // namespace

void launch_attend_rows(const Queue& q, const AttendArgs& a) {
  const dim3 grid{static_cast<unsigned>(a.splits), static_cast<unsigned>(a.heads),
                  static_cast<unsigned>((a.m + kRows - 1) / kRows)};
  const auto floats =
      static_cast<std::size_t>(kRows * (a.cache.head_dim + kSplit + kSplit / kBlock + 2));
  launch(q, "attend_rows", attend_rows, grid, kThreads, floats * sizeof(float), a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
