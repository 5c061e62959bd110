// add_rmsnorm_linear: the fused operation.
//
//   h  = residual + delta                       fp32 [M, K]   (delta null: h = residual)
//   u  = h * rsqrt(mean(h^2) + eps) * g         g = weight, or 1 + weight with unit_offset
//   y_i = W_i u                                 as linear, u rounded once to the activation mode
// writes residual_out = h (when not null), normed = u in fp32 (when not null), and every y.
//
// The rule: inputs are const and outputs are other buffers, so that no order of work-groups can
// change a result. residual_out must not overlap residual or delta; ping-pong between two.
// A plan (each worker recomputes u, or one prepass does) never changes a bit.
// Without outputs it is residual-add + RMSNorm on its own: the prepass whose `normed`, given to
// linear, yields the fused operation's bits.
#pragma once
#include "ops/linear.h"

namespace nibble {

enum class Plan : std::uint8_t {
  Auto,     // the backend's choice
  Fused,    // every worker prepares the rows it needs itself; nothing is shared
  Prepass,  // rows are prepared once, then multiplied
};

struct AddRmsNormLinearArgs {
  const float* residual = nullptr;  // [M, K]
  const float* delta = nullptr;     // [M, K] or null
  const float* weight = nullptr;    // [K] norm weight
  float eps = 1e-6f;
  bool unit_offset = false;
  float* residual_out = nullptr;  // [M, K] or null
  float* normed = nullptr;        // [M, K] or null
  std::int64_t m = 0, k = 0;
  Activations activations = Activations::Int16;
  std::span<const LinearOutput> outputs = {};  // 0 to 4; with 0, residual_out or normed is given
  Epilogue epilogue = Epilogue::None;
  Plan plan = Plan::Auto;
};

void check(const AddRmsNormLinearArgs& a);

// Double-precision h and u, each [M, K].
void add_rmsnorm_reference(const AddRmsNormLinearArgs& a, double* h, double* u);

}  // namespace nibble
