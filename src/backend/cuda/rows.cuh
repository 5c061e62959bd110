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

// A thread's columns of a norm's weight, which nobody writes: before the wait.
template <int N>
struct NormWeights {
  float2 of[N];
  __device__ __forceinline__ explicit NormWeights(const Source& s) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
              stages = s.k / kStage;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int stage = warp + i * kRowWarps;
      const float* from = s.weight + (stage < stages ? stage * kStage : 0) + lane;
      of[i] = {from[0], from[32]};
      hold(of[i].x), hold(of[i].y);
    }
  }
};

// Row `row` of the source -> words [stages] 128 bytes, meta [stages]; residual_out and normed in
// this block's slice. scratch: 32 floats of shared memory; even and odd calls use it by turns.
// N: stages a warp, at most.
template <int N, bool Sums>
__device__ __forceinline__ void norm_row_of(const Source& s, std::int64_t row, int turn, int int8,
                                            Slice slice, Words words, RowMeta* meta, float* scratch,
                                            const NormWeights<N>* early = nullptr) {
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int stages = s.k / kStage, count = (stages - warp + kRowWarps - 1) / kRowWarps;
  constexpr int kStep = kRowWarps * kStage;
  const float *x = s.x + row * s.k, *other = s.other != nullptr ? s.other + row * s.k : nullptr;
  const int column = (count > 0 ? warp * kStage : 0) + lane;
  float2 v[N], w[N];  // all loads before the first use
  const auto load = [&](const float* from, float2(&to)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int c = i < count ? column + i * kStep : column;
      to[i] = {from[c], from[c + 32]};
    }
  };
  load(x, v);
  if (other != nullptr) {
    load(other, w);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i].x = v[i].x + w[i].x, v[i].y = v[i].y + w[i].y;
  }
  // Of this block's slice, by those who have it.
  const auto store = [&](float* to) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int c = column + i * kStep;
      if (i >= count || c + 32 < slice.begin || c >= slice.end) continue;
      if (c >= slice.begin) to[row * s.k + c] = v[i].x;
      if (c + 32 < slice.end) to[row * s.k + c + 32] = v[i].y;
    }
  };
  if (s.residual_out != nullptr) store(s.residual_out);
  float one = 0, two = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    one = i < count ? fmaf(v[i].x, v[i].x, one) : one;
    two = i < count ? fmaf(v[i].y, v[i].y, two) : two;
  }
  float* sums = scratch + turn % 2 * kRowWarps;
  one = add_lanes(one + two);
  if (lane == 0) sums[warp] = one;
  if (early == nullptr) load(s.weight, w);  // while others come
  block_sync();
  const float sum = add_sixteen(sums[lane % kRowWarps]);
  const float inv = 1.0f / sqrtf(sum / static_cast<float>(s.k) + s.eps);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float2 weight = early != nullptr ? early->of[i] : w[i];
    v[i].x = v[i].x * inv * (weight.x + s.offset), v[i].y = v[i].y * inv * (weight.y + s.offset);
  }
  if (s.normed != nullptr) store(s.normed);
  round_stages<N, Sums>(v, count, warp, kRowWarps, int8, words, meta);
}

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
