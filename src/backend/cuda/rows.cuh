// Rows of x for integer products, made in registers by a block of 16 warps: stage s of 64 columns
// is warp s % 16's. Same bits as prepare.cuh, which takes what this does not: plans whose stages do
// not follow each other every 64 columns, long rows under a norm.
#pragma once
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"
#include "backend/cuda/prepare.cuh"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr int kRowWarps = 16, kRowThreads = 32 * kRowWarps;
inline constexpr int kHeldStages = 5;  // of a row under a norm, a warp

// Norm: what does not depend on the launch before is loaded before it is awaited.
struct NormWeights {
  float2 w[kHeldStages];
  __device__ __forceinline__ void load(const Source& s) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const float* p = s.weight + warp * kStage + lane;
#pragma unroll
    for (int i = 0; i < kHeldStages; ++i) {
      if (warp + kRowWarps * i >= s.k / kStage) break;
      const float* at = p + i * kRowWarps * kStage;
      w[i] = {at[0] + s.offset, at[32] + s.offset};
    }
  }
};

// Row `row` of the source -> words [stages] 128 bytes, meta [stages]; residual_out and normed in
// this block's slice. scratch: 32 floats of shared memory; even and odd calls use it by turns.
template <bool Sums>
__device__ __forceinline__ void norm_row(const Source& s, std::int64_t row, int turn, int int8,
                                         const NormWeights& weights, Slice slice, char* words,
                                         RowMeta* meta, float* scratch) {
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int stages = s.k / kStage, count = (stages - warp + kRowWarps - 1) / kRowWarps;
  constexpr int kStep = kRowWarps * kStage;
  const float *x = s.x + row * s.k, *other = s.other != nullptr ? s.other + row * s.k : nullptr;
  const float* at = x + warp * kStage + lane;
  float2 v[kHeldStages];
#pragma unroll
  for (int i = 0; i < kHeldStages; ++i) {
    if (i >= count) break;
    v[i] = {at[i * kStep], at[i * kStep + 32]};
  }
  if (other != nullptr) {
    at = other + warp * kStage + lane;
#pragma unroll
    for (int i = 0; i < kHeldStages; ++i) {
      if (i >= count) break;
      v[i].x = v[i].x + at[i * kStep], v[i].y = v[i].y + at[i * kStep + 32];
    }
  }
  float one = 0, two = 0;
#pragma unroll
  for (int i = 0; i < kHeldStages; ++i) {
    if (i >= count) break;
    one = fmaf(v[i].x, v[i].x, one), two = fmaf(v[i].y, v[i].y, two);
  }
  float* sums = scratch + turn % 2 * kRowWarps;
  one = add_lanes(one + two);
  if (lane == 0) sums[warp] = one;
  block_sync();
  const float sum = add_sixteen(sums[lane % kRowWarps]);
  const float inv = 1.0f / sqrtf(sum / static_cast<float>(s.k) + s.eps);
#pragma unroll
  for (int i = 0; i < kHeldStages; ++i) {
    if (i >= count) break;
    v[i].x = v[i].x * inv * weights.w[i].x, v[i].y = v[i].y * inv * weights.w[i].y;
  }
  round_stages<kHeldStages, Sums>(v, count, warp, kRowWarps, int8, words, meta);
  if (s.residual_out == nullptr && s.normed == nullptr) return;
  for (int c = slice.begin + tid; c < slice.end; c += kRowThreads) {  // a few columns, once more
    const float h = other != nullptr ? x[c] + other[c] : x[c];
    if (s.residual_out != nullptr) s.residual_out[row * s.k + c] = h;
    if (s.normed != nullptr) s.normed[row * s.k + c] = h * inv * (s.weight[c] + s.offset);
  }
}

// Without a norm, or under a head's (GatedNorm, dim a multiple of 64 up to 256): units of a stage,
// or of a head, each by one warp alone: unit `first`, first + step, ...
template <bool Sums>
__device__ __forceinline__ void plain_row(const Source& s, std::int64_t row, int first, int step,
                                          int int8, char* words, RowMeta* meta) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* x = s.x + row * s.k;
  if (s.kind == Source::GatedNorm) {
    const float* z = s.other + row * s.k;
    const int each = s.dim / kStage;
#pragma unroll 1
    for (int head = first; head * s.dim < s.k; head += step) {
      float2 v[4] = {}, g[4] = {};
      float block[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i >= each) break;
        const int c = head * s.dim + i * kStage + lane;
        v[i] = {x[c], x[c + 32]}, g[i] = {z[c], z[c + 32]};
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) block[i] = add_lanes(v[i].x * v[i].x + v[i].y * v[i].y);
      const float sum = (block[0] + block[2]) + (block[1] + block[3]);
      const float inv = 1.0f / sqrtf(sum / static_cast<float>(s.dim) + s.eps);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i >= each) break;
        const int at = i * kStage + lane;
        v[i].x = v[i].x * inv * s.weight[at] * silu(g[i].x);
        v[i].y = v[i].y * inv * s.weight[at + 32] * silu(g[i].y);
      }
      round_stages<4, Sums>(v, each, head * each, 1, int8, words, meta);
    }
    return;
  }
  const int stages = s.k / kStage;
#pragma unroll 1
  for (int at = first; at < stages; at += 2 * step) {
    float2 v[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int c = (at + step * i) * kStage + lane;
      if (at + step * i < stages) v[i] = {x[c], x[c + 32]};
    }
    round_stages<2, Sums>(v, at + step < stages ? 2 : 1, at, step, int8, words, meta);
  }
}

// Whether these take this source, for weights whose stages follow each other.
inline bool rows_in_registers(const Source& s) {
  if (s.k % kStage != 0) return false;
  if (s.kind == Source::Norm) return s.k <= kHeldStages * kRowWarps * kStage;
  return s.kind == Source::Plain ||
         (s.dim % kStage == 0 && s.dim <= 4 * kStage && s.k % s.dim == 0);
}

}  // namespace nibble::NIBBLE_CUDA_NS
