#include "ops/gated_rmsnorm_linear.h"

#include <cmath>

namespace nibble {

void check(const GatedRmsNormLinearArgs& a) {
  require(a.o != nullptr && a.z != nullptr && a.weight != nullptr,
          "[gated_rmsnorm_linear] expected o, z and a norm weight, got null");
  require(a.heads > 0 && a.dim > 0, "[gated_rmsnorm_linear] expected heads and dim, got {} and {}",
          a.heads, a.dim);
  const std::int64_t k = a.heads * a.dim;
  check(LinearArgs{a.o, a.m, k, a.activations, a.outputs, Epilogue::None});
  for (const LinearOutput& out : a.outputs) {
    const auto bytes =
        static_cast<std::size_t>((a.m - 1) * out.ldy + out.w->format().n) * sizeof(float);
    require(!overlap(out.y, bytes, a.z, static_cast<std::size_t>(a.m * k) * sizeof(float)) &&
                !overlap(out.y, bytes, a.weight, static_cast<std::size_t>(a.dim) * sizeof(float)),
            "[gated_rmsnorm_linear] expected y apart from z and weight, got an alias");
  }
}

void gated_rmsnorm_reference(const GatedRmsNormLinearArgs& a, double* u) {
  for (std::int64_t at = 0; at < a.m * a.heads * a.dim; at += a.dim) {
    double sum = 0;
    for (std::int64_t d = 0; d < a.dim; ++d) sum += static_cast<double>(a.o[at + d]) * a.o[at + d];
    const double inv = 1 / std::sqrt(sum / static_cast<double>(a.dim) + a.eps);
    for (std::int64_t d = 0; d < a.dim; ++d) {
      const double z = a.z[at + d];
      u[at + d] = a.o[at + d] * inv * a.weight[d] * z / (1 + std::exp(-z));
    }
  }
}

}  // namespace nibble
