// add_rmsnorm_linear_conv: a gated delta net's projections and the causal convolution of the first
// one, so that a backend can convolve where it stores.
//
//   y_i = add_rmsnorm_linear(...);  causal_conv(u = y_0)     with the bits of those two
// Aliasing: as theirs, and the convolution's y is apart from what the projections read and write.
#pragma once
#include "ops/add_rmsnorm_linear.h"
#include "ops/delta_net.h"

namespace nibble {

void check(const AddRmsNormLinearArgs& a, const CausalConvArgs& c);

}  // namespace nibble
