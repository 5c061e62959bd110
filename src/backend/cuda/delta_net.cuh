// What the kernels of the gated delta net share: normalised q and k, gates.
#pragma once
#include "backend/cuda/math.cuh"
#include "backend/cuda/row_runs.cuh"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr int kDeltaColumns = 16;  // of a head's state, side by side

// Of one row and head: k . q of the normalised, and the gates.
struct Row {
  float kq, alpha, beta, unused;
};
__device__ __forceinline__ void gates(const RuleArgs& a, std::int64_t row, int head, Row& to) {
  const std::int64_t at = row * a.state.value_heads + head;
  const float rate = 0.0f - exp_cut(a.a_log[head]);
  to.alpha = exp_cut(rate * softplus(a.a[at] + a.dt_bias[head])), to.beta = sigmoid(a.b[at]);
}

// q and k of a row and key head, normalised, by a warp (lower lanes q, upper k): x is this lane's
// first value of both, 16 apart -> to [q, k][even, odd][half]; returns k . q.
template <int Dk>
__device__ __forceinline__ float normalise(const float* x, int dk, float eps, float* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32, odd = lane / 16, half = (dk + 1) / 2,
            values = (dk - lane % 16 + 15) / 16;
  float v[Dk > 0 ? Dk / 16 : 1] = {};
  if constexpr (Dk > 0) {
#pragma unroll
    for (int j = 0; j < Dk / 16; ++j) v[j] = x[16 * j];
  }
  const auto of = [&](int j) { return Dk > 0 ? v[Dk > 0 ? j : 0] : x[16 * j]; };
  float sum = 0;
#pragma unroll
  for (int j = 0; j < (Dk > 0 ? Dk / 16 : values); ++j) sum = fmaf(of(j), of(j), sum);
  sum = shuffle(add_sixteen(sum), 16 * odd);
  const float root = sqrtf(sum + eps);
  const float scale = 1.0f / (odd != 0 ? root : root * sqrtf(static_cast<float>(dk)));
  to += odd * 2 * half + lane % 2 * half + lane % 16 / 2;
  sum = 0;
#pragma unroll
  for (int j = 0; j < (Dk > 0 ? Dk / 16 : (dk + 15) / 16); ++j) {
    const bool is = Dk > 0 || j < values;
    const float one = is ? of(j) * scale : 0.0f, other = shuffle_xor(one, 16);
    if (is) to[8 * j] = one, sum = fmaf(one, other, sum);
  }
  return add_sixteen(sum);
}

}  // namespace nibble::NIBBLE_CUDA_NS
