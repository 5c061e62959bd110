// Arithmetic of the row-wise operations: the CPU's sequences of IEEE operations (simd/rowwise.inl),
// one value at a time.
#pragma once
#include "backend/cuda/device.h"

namespace nibble::NIBBLE_CUDA_NS {

// The first operand only where it is greater or less: as the CPU's vectors treat NaN.
__device__ __forceinline__ float max_or(float a, float b) { return a > b ? a : b; }
__device__ __forceinline__ float min_or(float a, float b) { return a < b ? a : b; }
__device__ __forceinline__ float cut(float x, float bound) {
  return fminf(fmaxf(x, -bound), bound);  // NaN becomes -bound, as on the CPU
}

// e^x, 0 below -87.3, cut at 88; NaN stays NaN.
__device__ __forceinline__ float exp_cut(float x) {
  const float low = -87.3f;
  const float y = max_or(low, min_or(88.0f, x));
  const float t = y * 1.44269504f;
  const int n = t == t ? round_int(t) : 0;
  const float nf = static_cast<float>(n);
  float r = fmaf(nf, -0.693145752f, y);
  r = fmaf(nf, -1.42860677e-6f, r);
  float p = 1.0f / 720;
  p = fmaf(p, r, 1.0f / 120);
  p = fmaf(p, r, 1.0f / 24);
  p = fmaf(p, r, 1.0f / 6);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  const float e = p * bits_float((n + 127) * (1 << 23));
  const float finite = e - (x < low ? e : 0.0f);
  return finite + (y - y);
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + exp_cut(-x)); }
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_cut(-x)); }
// Where bits are a device's own (Activations::Half).
__device__ __forceinline__ float sigmoid_near(float x) {
  return reciprocal_near(1.0f + exp2_near(x * -1.44269504f));
}
__device__ __forceinline__ float silu_near(float x) { return x * sigmoid_near(x); }
__device__ __forceinline__ float softplus(float x) {
  const float t = exp_cut(min_or(x, -x));
  const float s = t / (2.0f + t), s2 = s * s;
  float p = 1.0f / 17;
  p = fmaf(p, s2, 1.0f / 15);
  p = fmaf(p, s2, 1.0f / 13);
  p = fmaf(p, s2, 1.0f / 11);
  p = fmaf(p, s2, 1.0f / 9);
  p = fmaf(p, s2, 1.0f / 7);
  p = fmaf(p, s2, 1.0f / 5);
  p = fmaf(p, s2, 1.0f / 3);
  p = fmaf(p, s2, 1.0f);
  return fmaf(s + s, p, max_or(0.0f, x));
}

// 32 lanes' partial sums as the CPU's tree over columns 32 apart; in all lanes.
__device__ __forceinline__ float add_lanes(float x) {
  for (int n = 16; n > 0; n /= 2) x = x + shuffle_xor(x, n);
  return x;
}
// Sixteen lanes' partial sums (lanes 0..15 of each half warp) as the CPU adds them; the result is
// right in lanes 0 and 16; where the half warps hold the same, in all.
__device__ __forceinline__ float add_sixteen(float x) {
  for (int n = 8; n > 0; n /= 2) x = x + shuffle_xor(x, n);
  return x;
}

// Whether `all` blocks have come here, this one last; then what they wrote may be read, past the
// first cache. arrived: zero before and after. flag: of shared memory.
__device__ __forceinline__ bool is_last_block(int* arrived, int all, int* flag) {
  block_sync();
  if (threadIdx.x == 0) {
    fence();
    const bool last = atomic_add(arrived, 1) + 1 == all;
    if (last) fence(), *arrived = 0;  // for the next launch
    *flag = last;
  }
  block_sync();
  return *flag != 0;
}

}  // namespace nibble::NIBBLE_CUDA_NS
