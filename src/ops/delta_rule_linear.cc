#include "ops/delta_rule_linear.h"

namespace nibble {

void check(const DeltaRuleLinearArgs& a) {
  const DeltaRuleArgs& r = a.rule;
  const GatedRmsNormLinearArgs& l = a.linear;
  check(r), check(l);
  const DeltaShape& s = r.state->shape();
  require(l.o == r.out && l.m == r.m && l.heads == s.value_heads && l.dim == s.value_dim &&
              l.activations == r.activations,
          "[delta_rule_linear] expected the delta rule's output as the projection's input, of {} "
          "rows, {} heads of {} values, got {}, {} of {}",
          r.m, s.value_heads, s.value_dim, l.m, l.heads, l.dim);
  const auto bytes = [](std::int64_t n) { return static_cast<std::size_t>(n) * sizeof(float); };
  const std::size_t size = bytes(r.m * s.value_width()), gates = bytes(r.m * s.value_heads);
  require(!overlap(r.out, size, l.z, size) && !overlap(r.out, size, l.weight, bytes(l.dim)),
          "[delta_rule_linear] expected out apart from z and weight, got an alias");
  for (const LinearOutput& o : l.outputs) {
    const std::size_t y = bytes((l.m - 1) * o.ldy + o.w->format().n);
    require(!overlap(o.y, y, r.qkv, bytes(r.m * s.channels())) && !overlap(o.y, y, r.a, gates) &&
                !overlap(o.y, y, r.b, gates),
            "[delta_rule_linear] expected y apart from qkv, a and b, got an alias");
  }
}

}  // namespace nibble
