// A causal convolution where a product's sums are stored: gemv.cuh's and gemv_pairs.cu's.
#pragma once
#include "backend/cuda/rows.cuh"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr int kConvTaps = 4;
inline bool can_convolve(const DeltaLayer& of) {
  return of.taps == kConvTaps && of.channels % kTile == 0;
}
// A row's causal convolution (causal_conv.cu, whose order this is) of channel c. Who stores a
// channel's u has its state alone, and may load it as early as after the wait.
struct Convolution {
  float w[kConvTaps], x[kConvTaps - 1];
  float* state;

  __device__ __forceinline__ void load(const ConvArgs& a, int row, int c) {
    const Place place = a.rows[row];
    const std::int64_t channels = a.state.channels;
    state = a.state.conv + place.slot * a.state.conv_slot + c;
#pragma unroll
    for (int i = 0; i < kConvTaps; ++i) {
      w[i] = a.weight[i * channels + c];
      if (i + 1 < kConvTaps) x[i] = place.position == 0 ? 0.0f : state[i * channels];
    }
  }
  __device__ __forceinline__ void finish(const ConvArgs& a, int row, int c, float u) {
    const std::int64_t channels = a.state.channels;
    const auto at = [&](int i) { return i + 1 == kConvTaps ? u : x[i]; };
    float y = w[0] * x[0];
#pragma unroll
    for (int i = 1; i < kConvTaps; ++i) y = fmaf(w[i], at(i), y);
#pragma unroll
    for (int i = 1; i < kConvTaps; ++i) state[(i - 1) * channels] = at(i);
    a.y[row * channels + c] = silu(y);
  }
};
__device__ __forceinline__ void convolve(const ConvArgs& a, int row, int c, float u) {
  Convolution of;
  of.load(a, row, c), of.finish(a, row, c, u);
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
