// A split of at most 512 positions of a row's attention: where its keys and values lie, and what
// attention.cu and attention_rows.cu both do with them.
#pragma once
#include "backend/cuda/kernels.h"
#include "backend/cuda/rope.cuh"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr int kBlock = 64, kSplit = 512;

__device__ __forceinline__ std::int64_t vector_index(const KvLayer& c, const Place& p, int head) {
  return (static_cast<std::int64_t>(p.slot) * c.kv_heads + head) * c.positions + p.position;
}
// Index of dim d of a key in its head's elements.
__device__ __forceinline__ std::int64_t key_index(const KvLayer& c, int position, int d) {
  return (static_cast<std::int64_t>(position / kBlock * (c.head_dim / 8) + d / 8) * kBlock +
          position % kBlock) *
             8 +
         d % 8;
}

// use(d, k) for every eight dims d .. d + 7 of a key, ascending; `Batch` loads go out before the
// first is used. at: index of dim 0.
template <int Batch, class Use>
__device__ __forceinline__ void each_eight(const KvLayer& c, std::int64_t at, Use&& use) {
  const int eights = c.head_dim / 8;
  if (c.fixed) {
    const uint4* keys =
        reinterpret_cast<const uint4*>(static_cast<const std::int16_t*>(c.keys) + at);
    const auto take = [&](int i, const uint4& v) {
      const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
      float k[8];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        k[2 * j] = static_cast<float>(static_cast<std::int16_t>(words[j] & 0xffff));
        k[2 * j + 1] = static_cast<float>(static_cast<std::int16_t>(words[j] >> 16));
      }
      use(8 * i, k);
    };
    int first = 0;
#pragma unroll 1
    for (; first + Batch <= eights; first += Batch) {
      uint4 v[Batch];
#pragma unroll
      for (int i = 0; i < Batch; ++i) v[i] = keys[(first + i) * kBlock];
#pragma unroll
      for (int i = 0; i < Batch; ++i) take(first + i, v[i]);
    }
#pragma unroll 1
    for (; first < eights; ++first) take(first, keys[first * kBlock]);
  } else {
    const float* keys = static_cast<const float*>(c.keys) + at;
#pragma unroll 1
    for (int i = 0; i < eights; ++i) {
      float k[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) k[j] = keys[i * kBlock * 8 + j];
      use(8 * i, k);
    }
  }
}

// One warp: scores [blocks * kBlock] of a row, `pitch` apart, become weights (times the values'
// scales, if there are any), blocks in order. shrink: of each block, `pitch` apart.
__device__ __forceinline__ void soften(float* score, int pitch, int blocks,
                                       const float* value_scales, float* shrink, float* sums,
                                       float* top) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  float now = bits_float(static_cast<int>(0xff800000u)), sum = 0;
  const float none = now;
  for (int b = 0; b < blocks; ++b) {
    float* s = score + b * kBlock * pitch;
    float most = max_or(s[lane * pitch], s[(lane + 32) * pitch]);
    for (int n = 16; n > 0; n /= 2) most = max_or(most, shuffle_xor(most, n));
    const float next = most > now ? most : now;
    const float less = now == none ? 0.0f : exp_cut(now - next);
    warp_sync();
    // Lane l adds positions l, l + 16, ... of the block in this order; lanes 16.. do the same.
    sum = sum * less;
    float e[4];
    for (int i = 0; i < 4; ++i) {
      e[i] = exp_cut(s[(16 * i + lane % 16) * pitch] - next);
      sum = sum + e[i];
    }
    warp_sync();
    for (int i = 0; i < 4; ++i) {
      const int p = 16 * i + lane % 16;
      if (lane < 16)
        s[p * pitch] = value_scales != nullptr ? e[i] * value_scales[b * kBlock + p] : e[i];
    }
    if (lane == 0) shrink[b * pitch] = less;
    now = next;
  }
  sum = add_sixteen(sum);
  if (lane == 0) *sums = sum, *top = now;
}

// Dim d of a row and head (at: row * heads + head) is summed up over its only split. gate: where
// its own is, or null.
__device__ __forceinline__ void finish_whole(const AttendArgs& a, std::int64_t at, int d, float o,
                                             float sum, const float* gate) {
  o = fmaf(1.0f, o, 0.0f) / sum;
  if (gate != nullptr) o = o * sigmoid(*gate);
  a.out[at * a.cache.head_dim + d] = o;
}
// The same over a split.
__device__ __forceinline__ void finish(const AttendArgs& a, std::int64_t at, int position,
                                       int split, int d, float o, float sum, float top,
                                       const float* gate) {
  const int hd = a.cache.head_dim;
  if (position >= kSplit) {  // there are others to combine it with
    float* part = a.parts + (at * a.splits + split) * (hd + 2);
    if (d == 0) part[0] = top, part[1] = sum;
    part[2 + d] = o;
    return;
  }
  finish_whole(a, at, d, o, sum, gate);
}

__device__ __forceinline__ void finish(const AttendArgs& a, std::int64_t at, int position,
                                       int split, int d, float o, float sum, float top) {
  finish(a, at, position, split, d, o, sum, top,
         a.gate != nullptr ? a.gate + at * a.gate_pitch + d : nullptr);
}

}  // namespace nibble::NIBBLE_CUDA_NS
