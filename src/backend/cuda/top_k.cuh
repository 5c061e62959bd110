// Choice of a token's experts by one warp, for the launch of its own (moe.cu) and for the last
// block of the router's products (gemv.cuh).
#pragma once
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {

// The k largest of logits [experts], largest first, their softmax -> ids, weights [k]. NaN is never
// above another value; the first expert left is, where it is NaN. memory: top_k_bytes().
__device__ __forceinline__ void choose(const float* logits, int experts, int k, int* ids,
                                       float* weights, char* memory) {
  constexpr int kLanes = 32, kTaken = -0x7fffffff - 1;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  float* exps = reinterpret_cast<float*>(memory);         // [k]
  float* held = exps + k;                                 // [experts]
  char* taken = reinterpret_cast<char*>(held + experts);  // [experts]
#pragma unroll 8
  for (int e = lane; e < experts; e += kLanes) held[e] = load_fresh(logits + e), taken[e] = 0;
  warp_sync();
  // Usually a lane's logits fit in registers, as integers that compare alike.
  constexpr int kHeld = 8;
  bool odd = experts > kHeld * kLanes || k > kLanes;
  int key[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int e = i * kLanes + lane;
    const float x = e < experts ? held[e] + 0.0f : 0.0f;  // one zero
    odd = odd || x != x;
    const int bits = float_bits(x);
    key[i] = e < experts ? (bits < 0 ? bits ^ 0x7fffffff : bits) : kTaken;
  }
  if (first_lane(odd) == kLanes) {
    float mine = 0;  // the choice of this lane's number
    for (int s = 0; s < k; ++s) {
      int most = key[0], at = 0;
#pragma unroll
      for (int i = 1; i < kHeld; ++i)
        if (key[i] > most) most = key[i], at = i;
      const int highest = warp_max(most);
      const int best = -warp_max(most == highest ? -(at * kLanes + lane) : -kHeld * kLanes);
#pragma unroll
      for (int i = 0; i < kHeld; ++i)
        if (best == i * kLanes + lane) key[i] = kTaken;
      if (lane == s) mine = held[best], ids[s] = best;
    }
    const float e = exp_cut(mine - shuffle(mine, 0));
    float sum = 0;
    for (int s = 0; s < k; ++s) sum = sum + shuffle(e, s);
    if (lane < k) weights[lane] = e / sum;
    return;
  }
  float top = 0, sum = 0;
  for (int s = 0; s < k; ++s) {
    int first = experts, best = experts;  // the lowest left, the largest left
    float most = 0;
    for (int e = lane; e < experts; e += kLanes) {
      if (taken[e] != 0) continue;
      if (first == experts) first = e;
      const float x = held[e];
      if (x == x && (best == experts || x > most)) best = e, most = x;
    }
    first = -warp_max(-first);
    for (int n = kLanes / 2; n > 0; n /= 2) {
      const int other = shuffle_xor(best, n);
      const float value = shuffle_xor(most, n);
      if (other < experts && (best == experts || value > most || (value == most && other < best)))
        best = other, most = value;
    }
    const float lowest = held[first];
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

// By the block that ends last, once this one's logits are stored: the choice of m tokens, of `n`
// experts, logits [m][ldy]. Memory: in place of what shared memory held.
__device__ __forceinline__ void choose_at_last(const Choice& c, const float* logits,
                                               std::int64_t ldy, int n, int m) {
  char* memory = shared_memory();
  if (!is_last_block(c.arrived, static_cast<int>(gridDim.x), reinterpret_cast<int*>(memory)))
    return;
  const int r = static_cast<int>(threadIdx.x) / 32;
  block_sync();  // all know it
  if (r < m)
    choose(logits + r * ldy, n, c.k, c.ids + r * c.k, c.weights + r * c.k,
           memory + r * top_k_bytes(n, c.k));
}

}  // namespace nibble::NIBBLE_CUDA_NS
