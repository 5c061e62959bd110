// delta_rule_linear: the delta rule and the output projection of a gated delta net, one after the
// other, so that a backend can make what stands between them (gated norm, rounding) on the way.
//
//   out = delta_rule(...);  y_i = gated_rmsnorm_linear(out, z)     with the bits of those two
// Aliasing: as theirs, and no y may overlap qkv, a or b; out is apart from z and the norm's weight.
#pragma once
#include "ops/delta_net.h"
#include "ops/gated_rmsnorm_linear.h"

namespace nibble {

struct DeltaRuleLinearArgs {
  DeltaRuleArgs rule;
  GatedRmsNormLinearArgs linear;  // o is rule.out
};

void check(const DeltaRuleLinearArgs& a);

}  // namespace nibble
