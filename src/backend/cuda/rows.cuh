// Rows of x for integer products, made in registers by a block of 16 warps: stage s of 64 columns
// is warp s % 16's. Same bits as prepare.cuh, which takes what this does not: plans whose stages do
// not follow each other every 64 columns, long rows under a norm.
#pragma once
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"
#include "backend/cuda/prepare.cuh"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr int kRowWarps = 16, kRowThreads = 32 * kRowWarps;
inline constexpr int kHeldStages = 5, kFewStages = 2;  // at once, a warp
inline constexpr int kHeldEights = 3;                  // at once, a lane of plain rows
inline constexpr int kHeadStages = 4;                  // of a head under its norm, at most

// What a thread needs of rows under a norm and may know before the wait. N: stages of a warp, at
// most. Early: the norm's weight, which nobody writes, too.
template <int N, bool Early>
struct NormRows {
  static constexpr int kStep = kRowWarps * kStage;
  int column;  // of this lane, first
  int count;   // stages of this warp
  float2 w[N];

  __device__ __forceinline__ explicit NormRows(const Source& s) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    column = warp * kStage + lane;
    count = (s.k / kStage - warp + kRowWarps - 1) / kRowWarps;
    hold(column), hold(count);
    if constexpr (Early) {
      load(s.weight + column, w);
#pragma unroll
      for (int i = 0; i < N; ++i) hold(w[i].x), hold(w[i].y);
    }
  }
  // Early: before make(), once what else is to come has been asked for.
  __device__ __forceinline__ void ready(const Source& s) {
    static_assert(Early);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      w[i].x = w[i].x + s.offset, w[i].y = w[i].y + s.offset;
      hold(w[i].x), hold(w[i].y);
    }
  }
  // Whether a column of this warp is in the slice.
  __device__ __forceinline__ bool has(Slice slice) const {
    const int first = static_cast<int>(threadIdx.x) / 32 * kStage;
    bool any = false;
#pragma unroll
    for (int i = 0; i < N; ++i)
      any |= static_cast<unsigned>(first + i * kStep + kStage - 1 - slice.begin) <
             static_cast<unsigned>(slice.end - slice.begin + kStage - 1);
    return any;
  }
  // 0 where there is no such stage: it adds nothing. All loads come before the first use.
  __device__ __forceinline__ void load(const float* from, float2 (&to)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      to[i] = {0, 0};
      if (i < count) to[i] = {from[i * kStep], from[i * kStep + 32]};
    }
  }
  __device__ __forceinline__ void store(const float2 (&v)[N], float* to, Slice slice) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int c = column + i * kStep;
      if (i >= count || c + 32 < slice.begin || c >= slice.end) continue;
      if (c >= slice.begin) to[i * kStep] = v[i].x;
      if (c + 32 < slice.end) to[i * kStep + 32] = v[i].y;
    }
  }
  // Row `row` of the source -> v; residual_out and normed in this block's slice() where `stores`,
  // which is the warp's. scratch: 32 floats of shared memory; even and odd calls use it by turns.
  template <class F>
  __device__ __forceinline__ void normalise(const Source& s, std::int64_t row, int turn,
                                            bool stores, F&& slice, float* scratch,
                                            float2 (&v)[N]) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const std::int64_t at = row * s.k + column;
    float2 more[N];
    load(s.x + at, v);
    if (s.other != nullptr) {
      load(s.other + at, more);
#pragma unroll
      for (int i = 0; i < N; ++i) v[i].x = v[i].x + more[i].x, v[i].y = v[i].y + more[i].y;
    }
    if (stores && s.residual_out != nullptr) store(v, s.residual_out + at, slice());
    float one = 0, two = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) one = fmaf(v[i].x, v[i].x, one), two = fmaf(v[i].y, v[i].y, two);
    float* sums = scratch + turn % 2 * kRowWarps;
    one = add_lanes(one + two);
    if (lane == 0) sums[warp] = one;
    if constexpr (!Early) {
      load(s.weight + column, w);  // while others come
#pragma unroll
      for (int i = 0; i < N; ++i) w[i].x = w[i].x + s.offset, w[i].y = w[i].y + s.offset;
    }
    block_sync();
    const float sum = add_sixteen(sums[lane % kRowWarps]);
    const float inv = 1.0f / sqrtf(sum / static_cast<float>(s.k) + s.eps);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      v[i].x = v[i].x * inv * w[i].x, v[i].y = v[i].y * inv * w[i].y;
    }
    if (stores && s.normed != nullptr) store(v, s.normed + at, slice());
  }
  // The same -> words [stages] 128 bytes, meta [stages].
  template <bool Sums, class F>
  __device__ __forceinline__ void make(const Source& s, std::int64_t row, int turn, int int8,
                                       bool stores, F&& slice, Words words, RowMeta* meta,
                                       float* scratch) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    float2 v[N];
    normalise(s, row, turn, stores, slice, scratch, v);
    round_stages<N, Sums>(v, count, warp, kRowWarps, int8, words, meta);
  }
};

// Heads of up to N stages under their norm and gate: head, head + step, ... below `heads`, by a
// warp.
template <int N>
__device__ __forceinline__ void gated_heads(const Source& s, int head, int heads, int step,
                                            int int8, Words words, RowMeta* meta) {
  const int lane = static_cast<int>(threadIdx.x) % 32, each = N == 2 ? 2 : s.dim / kStage;
#pragma unroll 1
  for (; head < heads; head += step) {
    const std::int64_t from = static_cast<std::int64_t>(head) * s.dim + lane;
    const float *x = s.x + from, *z = s.other + from;
    float2 v[N], g[N];
    float block[4] = {};
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int c = i < each ? i * kStage : 0;
      v[i] = {x[c], x[c + 32]}, g[i] = {z[c], z[c + 32]};
    }
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < each) block[i] = add_lanes(v[i].x * v[i].x + v[i].y * v[i].y);
    const float sum = (block[0] + block[2]) + (block[1] + block[3]);
    const float inv = 1.0f / sqrtf(sum / static_cast<float>(s.dim) + s.eps);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i >= each) break;
      const int at = i * kStage + lane;
      v[i].x = v[i].x * inv * s.weight[at] * silu(g[i].x);
      v[i].y = v[i].y * inv * s.weight[at + 32] * silu(g[i].y);
    }
    round_stages<N, true>(v, each, head * each, 1, int8, words, meta);
  }
}

// Plain rows, four stages at once by a warp: a lane has eight columns of stage lane / 8, those of
// two words of a fragment.
struct Eight {
  float4 low, high;  // columns 32 c + 4 t .. and 16 further on; c = lane % 8 / 4, t = lane % 4
};
__device__ __forceinline__ Eight load_eight(const float* stage) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* at = stage + lane % 8 / 4 * 32 + lane % 4 * 4;
  return {*reinterpret_cast<const float4*>(at), *reinterpret_cast<const float4*>(at + 16)};
}
__device__ __forceinline__ void round_eight(const Eight& v, bool exists, int stage, int int8,
                                            Words to, RowMeta* meta) {
  const int lane = static_cast<int>(threadIdx.x) % 32, c = lane % 8 / 4, t = lane % 4;
  const float top = int8 ? 127.0f : 32512.0f;
  const float x[8] = {v.low.x, v.low.y, v.low.z, v.low.w, v.high.x, v.high.y, v.high.z, v.high.w};
  int most = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {  // as bits, so that NaN and Inf win and reach the scale
    const int bits = float_bits(x[i]) & 0x7fffffff;
    most = most > bits ? most : bits;
  }
#pragma unroll
  for (int n = 1; n < 8; n *= 2) {
    const int other = shuffle_xor(most, n);
    most = most > other ? most : other;
  }
  const float largest = bits_float(most);
  const bool tiny = largest < 1e-30f;  // 1 / largest would overflow
  const float scale = tiny ? 0.0f : largest / top, inverse = tiny ? 0.0f : top / largest;
  // q = 256 high + low, both signed bytes; int8: high is 0. In the lowest bits of q + kBig.
  constexpr float kBig = 12582912.0f;  // 1.5 * 2^23: the sum is rounded to an integer
  int q[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) q[i] = float_bits(cut(x[i] * inverse, top) + kBig);
  std::uint32_t high[2], low[2];
  int sum = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int* p = q + 4 * i;
    low[i] = four_bytes<0>(p[0], p[1], p[2], p[3]);
    high[i] = four_bytes<1>(p[0] + 128, p[1] + 128, p[2] + 128, p[3] + 128);
    sum = add_bytes(low[i], sum + 256 * add_bytes(high[i], 0));
  }
  sum = sum + shuffle_xor(sum, 1), sum = sum + shuffle_xor(sum, 2);
  const int other = shuffle_xor(sum, 4);
  if (!exists) return;
  char* at = to.at + stage * 128 + (to.straight ? c * 32 + t * 4 : t * 16 + c * 8);
  const int second = to.straight ? 16 : 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    *reinterpret_cast<std::uint32_t*>(at + i * second) = high[i];
    *reinterpret_cast<std::uint32_t*>(at + 64 + i * second) = low[i];
  }
  if (lane % 8 == 0) meta[stage] = {scale, -8 * (sum + other), {sum, other}};
}

// N: of four stages, at once.
template <int N>
__device__ __forceinline__ void plain_stages(const Source& s, int stages, int warp, int warps,
                                             int int8, Words words, RowMeta* meta) {
  const int mine = static_cast<int>(threadIdx.x) % 32 / 8;
#pragma unroll 1
  for (int at = 4 * warp; at < stages; at += 4 * N * warps) {
    Eight v[N];  // all loads before the first use
    int stage[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      stage[i] = at + 4 * i * warps + mine;
      v[i] = load_eight(s.x + std::int64_t{stage[i] < stages ? stage[i] : at} * kStage);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i > 0 && at + 4 * i * warps >= stages) break;
      round_eight(v[i], stage[i] < stages, stage[i], int8, words, meta);
    }
  }
}

// m plain rows, one after the other, by warp `warp` of `warps`.
__device__ __forceinline__ void plain_rows(const Source& s, int m, int warp, int warps, int int8,
                                           Words words, RowMeta* meta) {
  const int stages = m * (s.k / kStage);
  if (stages <= 4 * warps)
    plain_stages<1>(s, stages, warp, warps, int8, words, meta);
  else
    plain_stages<kHeldEights>(s, stages, warp, warps, int8, words, meta);
}

// Whether a warp has kFewStages at most.
inline bool is_few(const Source& s) { return s.k <= kFewStages * kRowWarps * kStage; }
// Whether these take this source, for weights whose stages follow each other.
inline bool rows_in_registers(const Source& s) {
  if (s.k % kStage != 0) return false;
  if (s.kind == Source::Norm) return s.k <= kHeldStages * kRowWarps * kStage;
  return s.kind == Source::Plain ||
         (s.dim % kStage == 0 && s.dim <= kHeadStages * kStage && s.k % s.dim == 0);
}

}  // namespace nibble::NIBBLE_CUDA_NS
