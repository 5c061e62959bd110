#include "ops/experts.h"

#include <cmath>

#include "ops/pieces.h"

namespace nibble {
namespace {

void check_expert(const ExpertsArgs& a, const char* which, const Weight* gate, const Weight* up,
                  const Weight* down) {
  require(gate != nullptr && up != nullptr && down != nullptr,
          "[experts] expected gate, up and down of the {}, got null", which);
  const std::int64_t stack = gate->stack(), width = gate->format().n / stack;
  const auto expect = [&](const char* name, const Weight& w, std::int64_t n, std::int64_t k,
                          int pieces) {
    const WeightFormat& f = w.format();
    require(w.stack() == stack && f.n == stack * n && f.k == k && w.pieces() == pieces,
            "[experts] expected {} of the {} as {} x [{}, {}] in {} pieces, got {} x [{}, {}] in "
            "{}",
            name, which, stack, n, k, pieces, w.stack(), f.n / w.stack(), f.k, w.pieces());
  };
  expect("gate", *gate, width, a.k, 1), expect("up", *up, width, a.k, 1);
  expect("down", *down, a.k, width, kRowParallelPieces);
  require(gate->format().type == up->format().type && gate->format().group == up->format().group,
          "[experts] expected gate and up of the {} in one format", which);
}

}  // namespace

void check(const ExpertsArgs& a) {
  require(a.m > 0 && a.x != nullptr && a.ids != nullptr && a.weights != nullptr &&
              a.shared != nullptr && a.y != nullptr,
          "[experts] expected x, ids, weights, shared and y, got null");
  check_expert(a, "routed experts", a.gate, a.up, a.down);
  check_expert(a, "shared expert", a.shared_gate, a.shared_up, a.shared_down);
  require(a.shared_gate->stack() == 1, "[experts] expected one shared expert, got {}",
          a.shared_gate->stack());
  const std::int64_t experts = a.gate->stack();
  require(a.top_k > 0 && a.top_k <= experts, "[experts] expected 1 to {} experts a token, got {}",
          experts, a.top_k);
  const std::size_t size = static_cast<std::size_t>(a.m * a.k) * sizeof(float),
                    chosen = static_cast<std::size_t>(a.m * a.top_k) * sizeof(float);
  require(!overlap(a.y, size, a.x, size) && !overlap(a.y, size, a.ids, chosen) &&
              !overlap(a.y, size, a.weights, chosen) &&
              !overlap(a.y, size, a.shared, static_cast<std::size_t>(a.m) * sizeof(float)),
          "[experts] expected y apart from x, ids, weights and shared, got an alias");
}

void expert_reference(const double* x, std::int64_t k, const float* gate, const float* up,
                      const float* down, std::int64_t width, double weight, double* y,
                      double* magnitude) {
  for (std::int64_t i = 0; i < width; ++i) {
    double g = 0, u = 0, g_size = 0, u_size = 0;
    for (std::int64_t c = 0; c < k; ++c) {
      const double gt = gate[i * k + c] * x[c], ut = up[i * k + c] * x[c];
      g += gt, u += ut, g_size += std::fabs(gt), u_size += std::fabs(ut);
    }
    const double silu = g / (1 + std::exp(-g)), act = silu * u;
    // How far the value moves with the errors of g and u, and by its own rounding.
    const double size = 1.1 * g_size * std::fabs(u) + u_size * std::fabs(silu) + std::fabs(act);
    for (std::int64_t c = 0; c < k; ++c) {
      y[c] += weight * down[c * width + i] * act;
      magnitude[c] += std::fabs(weight * down[c * width + i]) * size;
    }
  }
}

}  // namespace nibble
