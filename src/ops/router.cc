#include "ops/router.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

namespace nibble {

AddRmsNormLinearArgs linear_part(const RouterArgs& a, LinearOutput (&outputs)[2]) {
  outputs[0] = {a.router, nullptr, a.logits, a.router->format().n};
  outputs[1] = {a.shared_gate, nullptr, a.shared, 1};
  return {.residual = a.residual,
          .delta = a.delta,
          .weight = a.weight,
          .eps = a.eps,
          .unit_offset = a.unit_offset,
          .residual_out = a.residual_out,
          .normed = a.normed,
          .m = a.m,
          .k = a.k,
          .activations = a.activations,
          .outputs = outputs};
}

void check(const RouterArgs& a) {
  require(a.router != nullptr && a.shared_gate != nullptr && a.normed != nullptr &&
              a.ids != nullptr && a.weights != nullptr,
          "[router] expected router, shared gate, normed, ids and weights, got null");
  const std::int64_t experts = a.router->format().n;
  require(a.top_k > 0 && a.top_k <= experts, "[router] expected 1 to {} experts a token, got {}",
          experts, a.top_k);
  require(a.shared_gate->format().n == 1, "[router] expected a shared gate of 1 row, got {}",
          a.shared_gate->format().n);
  LinearOutput outputs[2];
  check(linear_part(a, outputs));
  const auto floats = [](std::int64_t n) { return static_cast<std::size_t>(n) * sizeof(float); };
  const std::pair<const void*, std::size_t> others[] = {
      {a.residual, floats(a.m * a.k)}, {a.delta, floats(a.m * a.k)},
      {a.weight, floats(a.k)},         {a.residual_out, floats(a.m * a.k)},
      {a.normed, floats(a.m * a.k)},   {a.logits, floats(a.m * experts)},
      {a.shared, floats(a.m)}};
  const std::size_t chosen = floats(a.m * a.top_k);
  for (const auto& [p, bytes] : others)
    require(!overlap(a.ids, chosen, p, bytes) && !overlap(a.weights, chosen, p, bytes),
            "[router] expected ids and weights apart from everything else, got an alias");
  require(!overlap(a.ids, chosen, a.weights, chosen),
          "[router] expected ids apart from weights, got an alias");
}

void top_k_reference(const float* logits, std::int64_t experts, std::int64_t top_k,
                     std::int32_t* ids, double* weights) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(experts));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t x, std::int32_t y) { return logits[x] > logits[y]; });
  double sum = 0;
  for (std::int64_t i = 0; i < top_k; ++i) {
    ids[i] = order[static_cast<std::size_t>(i)];
    sum += weights[i] = std::exp(static_cast<double>(logits[ids[i]]) - logits[ids[0]]);
  }
  for (std::int64_t i = 0; i < top_k; ++i) weights[i] /= sum;
}

}  // namespace nibble
