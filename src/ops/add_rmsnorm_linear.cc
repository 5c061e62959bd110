#include "ops/add_rmsnorm_linear.h"

#include <cmath>
#include <utility>

namespace nibble {

void check(const AddRmsNormLinearArgs& a) {
  require(a.residual != nullptr && a.weight != nullptr,
          "[add_rmsnorm_linear] expected residual and norm weight, got null");
  require(a.eps >= 0, "[add_rmsnorm_linear] expected eps >= 0, got {}", a.eps);
  if (a.outputs.empty()) {
    require(a.m > 0 && a.k > 0, "[add_rmsnorm_linear] expected M > 0 and K > 0, got {} and {}", a.m,
            a.k);
    require(a.residual_out != nullptr || a.normed != nullptr,
            "[add_rmsnorm_linear] expected a weight, residual_out or normed, got nothing to write");
    require(a.epilogue == Epilogue::None,
            "[add_rmsnorm_linear] expected gate and up for SwiGLU, got 0 outputs");
  } else {
    check(LinearArgs{a.residual, a.m, a.k, a.activations, a.outputs, a.epilogue});
  }
  const auto bytes = static_cast<std::size_t>(a.m * a.k) * sizeof(float);
  const auto row = static_cast<std::size_t>(a.k) * sizeof(float);
  struct Out {
    const char* name;
    const float* p;
    std::size_t bytes;
  };
  const auto apart = [&](const Out& o) {
    const std::pair<const char*, std::pair<const float*, std::size_t>> inputs[] = {
        {"residual", {a.residual, bytes}},
        {"delta", {a.delta, bytes}},
        {"weight", {a.weight, row}}};
    for (const auto& [name, in] : inputs)
      require(
          !overlap(o.p, o.bytes, in.first, in.second),
          "[add_rmsnorm_linear] expected {} apart from {}, got an alias: an operation never writes "
          "what it reads (ping-pong the residual between two buffers)",
          o.name, name);
  };
  const Out h{"residual_out", a.residual_out, bytes}, u{"normed", a.normed, bytes};
  apart(h), apart(u);
  require(!overlap(h.p, h.bytes, u.p, u.bytes),
          "[add_rmsnorm_linear] expected residual_out apart from normed");
  for (const LinearOutput& o : a.outputs) {
    if (o.y == nullptr) continue;
    const Out y{"y", o.y,
                static_cast<std::size_t>((a.m - 1) * o.ldy + o.w->format().n) * sizeof(float)};
    apart(y);
    require(!overlap(y.p, y.bytes, h.p, h.bytes) && !overlap(y.p, y.bytes, u.p, u.bytes),
            "[add_rmsnorm_linear] expected y apart from residual_out and normed");
  }
}

void add_rmsnorm_reference(const AddRmsNormLinearArgs& a, double* h, double* u) {
  for (std::int64_t i = 0; i < a.m; ++i) {
    double sum = 0;
    for (std::int64_t c = 0; c < a.k; ++c) {
      const std::int64_t at = i * a.k + c;
      h[at] = static_cast<double>(a.residual[at]) + (a.delta != nullptr ? a.delta[at] : 0.0f);
      sum += h[at] * h[at];
    }
    const double inv = 1.0 / std::sqrt(sum / static_cast<double>(a.k) + a.eps);
    for (std::int64_t c = 0; c < a.k; ++c)
      u[i * a.k + c] = h[i * a.k + c] * inv * ((a.unit_offset ? 1.0 : 0.0) + a.weight[c]);
  }
}

}  // namespace nibble
