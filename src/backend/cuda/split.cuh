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

// A block's 64 scores by a warp, s of positions lane and lane + 32: their weights e, and of all 64
// the largest score and the weights' sum (lane l adds l, l + 16, ...; then 16 lanes are added).
struct Softened {
  float e[2], top, sum;
};
__device__ __forceinline__ Softened soften(const float (&s)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  Softened r{};
  r.top = max_or(s[0], s[1]);
#pragma unroll
  for (int n = 16; n > 0; n /= 2) r.top = max_or(r.top, shuffle_xor(r.top, n));
#pragma unroll
  for (int i = 0; i < 2; ++i) r.e[i] = exp_cut(s[i] - r.top);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) sum = sum + shuffle(r.e[i / 2], i % 2 * 16 + lane % 16);
  r.sum = add_sixteen(sum);
  return r;
}

// The shares of a split's blocks, lane b's of block b (top, sum: the block's; minus infinity and 0
// where there is none), and what the split's top and sum are.
struct Shares {
  float share, top, sum;
};
__device__ __forceinline__ Shares share_out(float top, float sum) {
  constexpr int kBlocks = kSplit / kBlock;
  Shares r{0, top, 0};
#pragma unroll
  for (int n = kBlocks / 2; n > 0; n /= 2) r.top = max_or(r.top, shuffle_xor(r.top, n));
  r.share = exp_cut(top - r.top);
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) r.sum = fmaf(shuffle(r.share, b), shuffle(sum, b), r.sum);
  return r;
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
