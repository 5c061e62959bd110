// Of one head, by one warp: RMSNorm, RoPE, and the 16-bit fixed point of the KV cache; in the CPU's
// order (simd/rowwise.inl).
#pragma once
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr int kLanes = 32;

// x [hd] -> y [hd], in shared memory; no load waits for another.
__device__ __forceinline__ void load_head(const float* x, int hd, float* y) {
  constexpr int kRun = 8;
#pragma unroll 1
  for (int from = static_cast<int>(threadIdx.x) % kLanes; from < hd; from += kRun * kLanes) {
    float v[kRun] = {};
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      if (from + i * kLanes < hd) v[i] = x[from + i * kLanes];
#pragma unroll
    for (int i = 0; i < kRun; ++i) hold(v[i]);
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      if (from + i * kLanes < hd) y[from + i * kLanes] = v[i];
  }
  warp_sync();
}

// y [hd] and all others in shared memory; weight [hd], or null: no norm; turn: cosines and sines
// [rotary / 2][2].
__device__ __forceinline__ void turn_head(float* y, const float* weight, float offset, float eps,
                                          int hd, const float* turn, int rotary) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  if (weight != nullptr) {
    float sum = 0;
#pragma unroll 4
    for (int d = lane % 16; d < hd; d += 16) sum = fmaf(y[d], y[d], sum);
    sum = shuffle(add_sixteen(sum), 0);
    const float inv = 1.0f / sqrtf(sum / static_cast<float>(hd) + eps);
    warp_sync();  // all have read y
#pragma unroll 2
    for (int d = lane; d < hd; d += kLanes) y[d] = y[d] * inv * (weight[d] + offset);
    warp_sync();
  }
  const int half = rotary / 2;
#pragma unroll 1
  for (int d = lane; d < half; d += kLanes) {
    const float c = turn[2 * d], s = turn[2 * d + 1], p = y[d], q = y[d + half];
    y[d] = p * c - q * s;
    y[d + half] = q * c + p * s;
  }
  warp_sync();
}

// x [n] in shared memory as 16-bit fixed point; at(d) says where. Whole warp. Returns the scale.
template <class At>
__device__ __forceinline__ float store_fixed(const float* x, int n, std::int16_t* out, At&& at) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  int bits = 0;
#pragma unroll 2
  for (int d = lane; d < n; d += kLanes) {
    const int b = float_bits(x[d]) & 0x7fffffff;
    bits = b > bits ? b : bits;
  }
  const float largest = bits_float(warp_max(bits));
  const bool tiny = largest < 1e-30f;
  const float inv = tiny ? 0.0f : 32512.0f / largest;
#pragma unroll 2
  for (int d = lane; d < n; d += kLanes)
    out[at(d)] = static_cast<std::int16_t>(round_int(cut(x[d] * inv, 32512.0f)));
  return tiny ? 0.0f : largest / 32512.0f;
}

}  // namespace nibble::NIBBLE_CUDA_NS
