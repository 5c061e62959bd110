#include "ops/delta_net.h"

#include <algorithm>
#include <cmath>

#include "ops/linear.h"

namespace nibble {
namespace {

// What both operations need of rows and state.
void check_state(const char* op, const RowPlace* rows, std::int64_t m, const DeltaState* state,
                 std::int64_t layer) {
  require(m > 0 && rows != nullptr && state != nullptr, "[{}] expected rows and a state, got null",
          op);
  const DeltaShape& s = state->shape();
  require(layer >= 0 && layer < s.layers, "[{}] expected layer < {}, got {}", op, s.layers, layer);
}

std::size_t bytes(std::int64_t floats) { return static_cast<std::size_t>(floats) * sizeof(float); }

// Normalised q, k and the gates of one token.
struct Token {
  std::vector<double> q, k;
  double g, beta;
};
Token token(const DeltaHead& h, std::int64_t t) {
  const auto unit = [&](const double* x, double scale) {
    std::vector<double> y(x, x + h.key_dim);
    double sum = h.eps;
    for (const double v : y) sum += v * v;
    for (double& v : y) v *= scale / std::sqrt(sum);
    return y;
  };
  const double x = h.a[t] + h.dt_bias;
  return {unit(h.q + t * h.key_dim, 1 / std::sqrt(static_cast<double>(h.key_dim))),
          unit(h.k + t * h.key_dim, 1), -std::exp(h.a_log) * (x > 20 ? x : std::log1p(std::exp(x))),
          1 / (1 + std::exp(-h.b[t]))};
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double s = 0;
  for (std::size_t i = 0; i < a.size(); ++i) s += a[i] * b[i];
  return s;
}

}  // namespace

std::vector<RowRun> row_runs(const char* op, const RowPlace* rows, std::int64_t m,
                             const DeltaShape& shape) {
  std::vector<RowRun> runs;
  for (std::int64_t i = 0; i < m; ++i) {
    const RowPlace& r = rows[i];
    require(r.slot >= 0 && r.slot < shape.slots && r.position >= 0,
            "[{}] expected slot < {} and position >= 0, got slot {} position {}", op, shape.slots,
            r.slot, r.position);
    if (!runs.empty() && runs.back().slot == r.slot) {
      RowRun& run = runs.back();
      require(r.position == run.position + run.count,
              "[{}] expected position {} of slot {} next, got {}", op, run.position + run.count,
              r.slot, r.position);
      ++run.count;
      continue;
    }
    for (const RowRun& run : runs)
      require(run.slot != r.slot, "[{}] expected the rows of slot {} together, got them apart", op,
              r.slot);
    runs.push_back({i, 1, r.slot, r.position});
  }
  return runs;
}

void check(const DeltaShape& s) {
  require(s.layers > 0 && s.slots > 0 && s.key_heads > 0 && s.key_dim > 0 && s.value_dim > 0,
          "[delta_rule] expected layers, slots, heads and dimensions above 0");
  require(s.value_heads > 0 && s.value_heads % s.key_heads == 0,
          "[delta_rule] expected value heads a multiple of {} key heads, got {}", s.key_heads,
          s.value_heads);
  require(s.conv_kernel >= 1, "[causal_conv] expected at least 1 tap, got {}", s.conv_kernel);
}

void check(const CausalConvArgs& a) {
  check_state("causal_conv", a.rows, a.m, a.state, a.layer);
  require(a.u != nullptr && a.weight != nullptr && a.y != nullptr,
          "[causal_conv] expected u, weight and y, got null");
  const DeltaShape& s = a.state->shape();
  const std::size_t size = bytes(a.m * s.channels());
  require(!overlap(a.y, size, a.u, size) &&
              !overlap(a.y, size, a.weight, bytes(s.conv_kernel * s.channels())),
          "[causal_conv] expected y apart from u and weight, got an alias");
}

void check(const DeltaRuleArgs& a) {
  check_state("delta_rule", a.rows, a.m, a.state, a.layer);
  require(a.qkv != nullptr && a.a != nullptr && a.b != nullptr && a.a_log != nullptr &&
              a.dt_bias != nullptr && a.out != nullptr,
          "[delta_rule] expected qkv, a, b, a_log, dt_bias and out, got null");
  const DeltaShape& s = a.state->shape();
  const std::size_t size = bytes(a.m * s.value_width()), gates = bytes(a.m * s.value_heads);
  require(!overlap(a.out, size, a.qkv, bytes(a.m * s.channels())) &&
              !overlap(a.out, size, a.a, gates) && !overlap(a.out, size, a.b, gates),
          "[delta_rule] expected out apart from qkv, a and b, got an alias");
}

void causal_conv_reference(const float* u, std::int64_t n, const float* taps, std::int64_t kernel,
                           double* y) {
  for (std::int64_t t = 0; t < n; ++t) {
    double x = 0;
    for (std::int64_t i = 0; i < kernel; ++i)
      if (const std::int64_t from = t - kernel + 1 + i; from >= 0)
        x += static_cast<double>(taps[i]) * u[from];
    y[t] = x / (1 + std::exp(-x));
  }
}

void delta_rule_reference(const DeltaHead& h, double* s, double* out) {
  for (std::int64_t t = 0; t < h.n; ++t) {
    const Token x = token(h, t);
    for (std::int64_t j = 0; j < h.value_dim; ++j) {
      double m = 0, o = 0;
      for (std::int64_t i = 0; i < h.key_dim; ++i) {
        s[i * h.value_dim + j] *= std::exp(x.g);
        m += s[i * h.value_dim + j] * x.k[static_cast<std::size_t>(i)];
      }
      const double d = x.beta * (h.v[t * h.value_dim + j] - m);
      for (std::int64_t i = 0; i < h.key_dim; ++i) {
        s[i * h.value_dim + j] += x.k[static_cast<std::size_t>(i)] * d;
        o += s[i * h.value_dim + j] * x.q[static_cast<std::size_t>(i)];
      }
      out[t * h.value_dim + j] = o;
    }
  }
}

// With G_i the sum of g up to i, A_ij = beta_i exp(G_i - G_j) k_i.k_j below the diagonal:
//   u = (I + A)^-1 diag(beta) (v - diag(e^G) k S)          by forward substitution
//   o_i = e^G_i q_i S + sum_(j <= i) exp(G_i - G_j) (q_i.k_j) u_j
//   S = e^G_n S + sum_i exp(G_n - G_i) k_i u_i^T
void delta_rule_chunked_reference(const DeltaHead& h, std::int64_t chunk, double* s, double* out) {
  const auto vd = static_cast<std::size_t>(h.value_dim);
  for (std::int64_t begin = 0; begin < h.n; begin += chunk) {
    const auto n = static_cast<std::size_t>(std::min(chunk, h.n - begin));
    std::vector<Token> x;
    std::vector<double> sum_g;
    for (std::size_t i = 0; i < n; ++i) {
      x.push_back(token(h, begin + static_cast<std::int64_t>(i)));
      sum_g.push_back((i > 0 ? sum_g.back() : 0) + x[i].g);
    }
    std::vector<std::vector<double>> u(n, std::vector<double>(vd));
    const auto through = [&](const std::vector<double>& key, std::size_t j) {  // (key S)_j
      double r = 0;
      for (std::size_t c = 0; c < key.size(); ++c) r += key[c] * s[c * vd + j];
      return r;
    };
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < vd; ++j) {
        const double v = h.v[(static_cast<std::size_t>(begin) + i) * vd + j];
        u[i][j] = x[i].beta * (v - std::exp(sum_g[i]) * through(x[i].k, j));
        for (std::size_t l = 0; l < i; ++l)
          u[i][j] -= x[i].beta * std::exp(sum_g[i] - sum_g[l]) * dot(x[i].k, x[l].k) * u[l][j];
      }
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < vd; ++j) {
        double o = std::exp(sum_g[i]) * through(x[i].q, j);
        for (std::size_t l = 0; l <= i; ++l)
          o += std::exp(sum_g[i] - sum_g[l]) * dot(x[i].q, x[l].k) * u[l][j];
        out[(static_cast<std::size_t>(begin) + i) * vd + j] = o;
      }
    for (std::size_t c = 0; c < static_cast<std::size_t>(h.key_dim); ++c)
      for (std::size_t j = 0; j < vd; ++j) {
        double& e = s[c * vd + j];
        e *= std::exp(sum_g[n - 1]);
        for (std::size_t i = 0; i < n; ++i)
          e += std::exp(sum_g[n - 1] - sum_g[i]) * x[i].k[c] * u[i][j];
      }
  }
}

}  // namespace nibble
