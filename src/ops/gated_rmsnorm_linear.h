// gated_rmsnorm_linear: the output projection of a gated delta net.
//
//   u_h = o_h * rsqrt(mean(o_h^2) + eps) * weight * silu(z_h)    per head, mean over its dim
//   y_i = W_i u                                as linear, u rounded once to the activation mode
// Aliasing: no y may overlap o, z or weight (checked).
#pragma once
#include "ops/linear.h"

namespace nibble {

struct GatedRmsNormLinearArgs {
  const float* o = nullptr;       // [M, heads * dim]
  const float* z = nullptr;       // [M, heads * dim]
  const float* weight = nullptr;  // [dim]
  float eps = 1e-6f;
  std::int64_t m = 0, heads = 0, dim = 0;
  Activations activations = Activations::Int16;
  std::span<const LinearOutput> outputs;  // 1 to 4, K = heads * dim
};

void check(const GatedRmsNormLinearArgs& a);

// Double-precision u [M, heads * dim].
void gated_rmsnorm_reference(const GatedRmsNormLinearArgs& a, double* u);

}  // namespace nibble
