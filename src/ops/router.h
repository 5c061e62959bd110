// router: chooses each token's experts.
//
//   h = residual + delta,  u = rmsnorm(h)         as add_rmsnorm_linear, which it begins with
//   logits = W u [experts];  ids = the top_k largest, largest first, the lowest index on a tie
//   weights_i = exp(logits_i - logits_0) / sum    over the chosen ones: the softmax over all
//                                                 experts, renormalised, is the same number
//   shared = W_s u, one value: the shared expert's gate before its sigmoid
// Any number of experts and any top_k up to it. NaN logits are never above another: ids stay in
// range. Aliasing: as add_rmsnorm_linear; ids, weights and shared are apart from everything.
#pragma once
#include "ops/add_rmsnorm_linear.h"

namespace nibble {

struct RouterArgs {
  const float* residual = nullptr;  // [M, K]
  const float* delta = nullptr;     // [M, K] or null
  const float* weight = nullptr;    // [K] norm weight
  float eps = 1e-6f;
  bool unit_offset = false;
  float* residual_out = nullptr;  // [M, K] or null
  float* normed = nullptr;        // [M, K]: u, the experts' input
  std::int64_t m = 0, k = 0;
  Activations activations = Activations::Int16;
  const Weight* router = nullptr;       // [experts, K]
  const Weight* shared_gate = nullptr;  // [1, K]
  std::int64_t top_k = 0;
  float* logits = nullptr;      // [M, experts]
  float* shared = nullptr;      // [M]
  std::int32_t* ids = nullptr;  // [M, top_k]
  float* weights = nullptr;     // [M, top_k]
};

void check(const RouterArgs& a);

// The fused operation inside: outputs must stay alive while the result is used.
AddRmsNormLinearArgs linear_part(const RouterArgs& a, LinearOutput (&outputs)[2]);

// Chosen ids and weights of one token, from its logits [experts].
void top_k_reference(const float* logits, std::int64_t experts, std::int64_t top_k,
                     std::int32_t* ids, double* weights);

}  // namespace nibble
