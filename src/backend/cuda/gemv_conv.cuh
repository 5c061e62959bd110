// A causal convolution where a product's sums are stored: gemv.cuh's and gemv_pairs.cu's.
#pragma once
#include "backend/cuda/rows.cuh"

namespace nibble::NIBBLE_CUDA_NS {

// A row's causal convolution (causal_conv.cu, whose order this is): `value` is u of channel c. Who
// stores a channel's u has its state alone.
inline constexpr int kConvTaps = 4;
inline bool can_convolve(const DeltaLayer& of) {
  return of.taps == kConvTaps && of.channels % kTile == 0;
}
__device__ __forceinline__ void convolve(const ConvArgs& a, int row, int c, float value) {
  const Place place = a.rows[row];
  const std::int64_t channels = a.state.channels;
  float* const state = a.state.conv + place.slot * a.state.conv_slot + c;
  float w[kConvTaps], x[kConvTaps];
#pragma unroll
  for (int i = 0; i < kConvTaps; ++i) {
    w[i] = a.weight[i * channels + c];
    x[i] = i + 1 == kConvTaps ? value : place.position == 0 ? 0.0f : state[i * channels];
  }
  float y = w[0] * x[0];
#pragma unroll
  for (int i = 1; i < kConvTaps; ++i) y = fmaf(w[i], x[i], y);
#pragma unroll
  for (int i = 1; i < kConvTaps; ++i) state[(i - 1) * channels] = x[i];
  a.y[row * channels + c] = silu(y);
}
// Asks the second cache for what that reads, of tiles begin .. end of W: nobody else has written it
// since the last step.
__device__ __forceinline__ void ask_for_state(const ConvArgs& a, int begin, int end) {
  constexpr int kPast = kConvTaps - 1;
  const int channels = a.state.channels, each = kConvTaps + a.m * kPast;
  if (end * kTile > channels) end = channels / kTile;
  for (int i = static_cast<int>(threadIdx.x); i < (end - begin) * each; i += kRowThreads) {
    const int tile = begin + i / each, at = i % each - kConvTaps, row = at / kPast;
    const float* from = at < 0 ? a.weight + (at + kConvTaps) * std::int64_t{channels}
                               : a.state.conv + load_fresh(&a.rows[row].slot) * a.state.conv_slot +
                                     (at - row * kPast) * std::int64_t{channels};
    prefetch(from + tile * kTile, kTile * sizeof(float));
  }
}

}  // namespace nibble::NIBBLE_CUDA_NS
