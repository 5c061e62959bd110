// experts: the chosen experts of every token, and the shared one, in one operation.
//
//   f_e(x) = down_e (silu(gate_e x) * (up_e x))
//   y = sum over slots s of weights_s f_(ids_s)(x)  +  sigmoid(shared) f_shared(x)
// Inputs of gate, up and down are each rounded once to the activation mode. down is row-parallel
// (ops/pieces.h): inside a piece the slots are added in order, then the shared expert, and pieces
// as a tree, so that a tensor-parallel rank holds a subtree. Bits of a token depend on its own row
// alone: not on M, on which tokens share its experts, or on how tokens are grouped.
// Aliasing: y apart from every input (checked).
#pragma once
#include "ops/linear.h"

namespace nibble {

struct ExpertsArgs {
  const float* x = nullptr;           // [M, K]
  const std::int32_t* ids = nullptr;  // [M, top_k], each below the number of experts
  const float* weights = nullptr;     // [M, top_k]
  const float* shared = nullptr;      // [M] the shared expert's gate before its sigmoid
  std::int64_t m = 0, k = 0, top_k = 0;
  Activations activations = Activations::Int16;
  // Stacks, one matrix an expert: gate and up [I, K], down [K, I] in 8 pieces.
  const Weight *gate = nullptr, *up = nullptr, *down = nullptr;
  // The shared expert: gate and up [J, K], down [K, J] in 8 pieces.
  const Weight *shared_gate = nullptr, *shared_up = nullptr, *shared_down = nullptr;
  float* y = nullptr;  // [M, K]
};

void check(const ExpertsArgs& a);

// One expert on one token, in double: weights dequantised, gate and up [I, K], down [K, I]; adds
// weight * f(x) to y [K], and the unit of its error bound to magnitude [K].
void expert_reference(const double* x, std::int64_t k, const float* gate, const float* up,
                      const float* down, std::int64_t width, double weight, double* y,
                      double* magnitude);

}  // namespace nibble
