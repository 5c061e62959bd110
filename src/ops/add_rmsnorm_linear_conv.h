// add_rmsnorm_linear_conv: a gated delta net's projections and the causal convolution of the first
// one, so that a backend can convolve where it stores.
//
//   y_i = add_rmsnorm_linear(...);  causal_conv(u = y_0)     with the bits of those two
// y_0 [M, channels], rows one after the other; it is written as well as the convolution's y.
// Aliasing: as theirs, and the convolution's y is apart from what the projections read and write.
// check() throws Error where that is not so, or u is not y_0 of as many rows and columns.
#pragma once
#include "ops/add_rmsnorm_linear.h"
#include "ops/delta_net.h"

namespace nibble {

void check(const AddRmsNormLinearArgs& a, const CausalConvArgs& c);

}  // namespace nibble
