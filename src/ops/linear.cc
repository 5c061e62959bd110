#include "ops/linear.h"

#include <cmath>
#include <functional>

namespace nibble {

bool overlap(const void* a, std::size_t an, const void* b, std::size_t bn) {
  if (a == nullptr || b == nullptr || an == 0 || bn == 0) return false;
  const auto* p = static_cast<const char*>(a);
  const auto* q = static_cast<const char*>(b);
  const std::less<const char*> before;
  return before(p, q + bn) && before(q, p + an);
}

void check(const LinearArgs& a) {
  require(a.m > 0, "[linear] expected M > 0, got {}", a.m);
  require(a.x != nullptr, "[linear] expected an input, got null");
  require(!a.outputs.empty() && a.outputs.size() <= 4, "[linear] expected 1 to 4 outputs, got {}",
          a.outputs.size());
  const bool swiglu = a.epilogue == Epilogue::SwiGlu;
  require(!swiglu || a.outputs.size() == 2,
          "[linear] expected gate and up for SwiGLU, got {} outputs", a.outputs.size());
  const auto floats = [](std::int64_t n) { return static_cast<std::size_t>(n) * sizeof(float); };
  for (std::size_t i = 0; i < a.outputs.size(); ++i) {
    const LinearOutput& o = a.outputs[i];
    require(o.w != nullptr, "[linear] expected a weight for output {}, got null", i);
    const WeightFormat& f = o.w->format();
    require(o.w->stack() == 1, "[linear] expected one matrix for output {}, got a stack of {}", i,
            o.w->stack());
    require(f.k == a.k, "[linear] expected K {} for output {}, got {}", a.k, i, f.k);
    require(o.w->pieces() == a.outputs[0].w->pieces(),
            "[linear] expected {} pieces for output {}, got {}", a.outputs[0].w->pieces(), i,
            o.w->pieces());
    if (swiglu && i == 1) {
      require(f.n == a.outputs[0].w->format().n,
              "[linear] expected gate and up of equal N, got {} and {}", a.outputs[0].w->format().n,
              f.n);
      continue;
    }
    require(o.y != nullptr && o.ldy >= f.n, "[linear] expected y with pitch >= {}, got {}", f.n,
            o.ldy);
    const std::size_t y_bytes = floats((a.m - 1) * o.ldy + f.n);
    require(
        !overlap(o.y, y_bytes, a.x, floats(a.m * a.k)),
        "[linear] expected y apart from x, got an alias: an operation never writes what it reads");
    for (std::size_t j = 0; j < a.outputs.size(); ++j) {
      const LinearOutput& q = a.outputs[j];
      require(!overlap(o.y, y_bytes, q.bias, floats(q.w->format().n)),
              "[linear] expected y apart from bias");
      if (j < i)
        require(!overlap(o.y, y_bytes, q.y, floats((a.m - 1) * q.ldy + q.w->format().n)),
                "[linear] expected outputs {} and {} apart, got an alias", j, i);
    }
  }
}

void linear_reference(const double* x, std::int64_t m, std::int64_t k, const float* w,
                      std::int64_t n, const float* bias, double* y, double* magnitude) {
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t r = 0; r < n; ++r) {
      double s = bias != nullptr ? bias[r] : 0.0, a = std::fabs(s);
      for (std::int64_t c = 0; c < k; ++c) {
        const double t = static_cast<double>(w[r * k + c]) * x[i * k + c];
        s += t, a += std::fabs(t);
      }
      y[i * n + r] = s, magnitude[i * n + r] = a;
    }
}

}  // namespace nibble
