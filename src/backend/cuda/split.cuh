// A split of at most 512 positions of a row's attention: where its keys and values lie, and what
// attention.cu and attention_rows.cu both do with them.
#pragma once
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr int kBlock = 64, kSplit = 512, kLanes = 32;

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

// Eight dims of a key from their 16 (int16) or 32 bytes.
__device__ __forceinline__ void load_eight(const void* keys, int fixed, std::int64_t at, float* k) {
  if (fixed) {
    const uint4 v = *reinterpret_cast<const uint4*>(static_cast<const std::int16_t*>(keys) + at);
    const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      k[2 * i] = static_cast<float>(static_cast<std::int16_t>(words[i] & 0xffff));
      k[2 * i + 1] = static_cast<float>(static_cast<std::int16_t>(words[i] >> 16));
    }
  } else {
    const float* p = static_cast<const float*>(keys) + at;
#pragma unroll
    for (int i = 0; i < 8; ++i) k[i] = p[i];
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

// Dim d of a row and head (at: row * heads + head) is summed up over a split.
__device__ __forceinline__ void finish(const AttendArgs& a, std::int64_t at, int position,
                                       int split, int d, float o, float sum, float top) {
  const int hd = a.cache.head_dim;
  if (position >= kSplit) {  // there are others to combine it with
    float* part = a.parts + (at * a.splits + split) * (hd + 2);
    if (d == 0) part[0] = top, part[1] = sum;
    part[2 + d] = o;
    return;
  }
  o = fmaf(1.0f, o, 0.0f) / sum;
  if (a.gate != nullptr) o = o * sigmoid(a.gate[at * a.gate_pitch + d]);
  a.out[at * hd + d] = o;
}

}  // namespace nibble::NIBBLE_CUDA_NS
