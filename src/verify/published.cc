#include "verify/published.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/thread_pool.h"
#include "verify/harness.h"

namespace nibble::verify {
namespace {

constexpr float kEps = 1e-6f;

// rmsnorm(residual + delta) of what the memory holds now.
std::vector<float> normed(const std::vector<float>& residual, const std::vector<float>& delta) {
  std::vector<float> u(residual.size());
  double squares = 0;
  for (std::size_t i = 0; i < u.size(); ++i) {
    u[i] = residual[i] + delta[i];
    squares += static_cast<double>(u[i]) * u[i];
  }
  const double inverse = 1 / std::sqrt(squares / static_cast<double>(u.size()) + kEps);
  for (float& x : u) x = static_cast<float>(x * inverse);
  return u;
}

bool is_late(std::int64_t group, double late) {
  const auto before = [&](std::int64_t g) { return std::floor(static_cast<double>(g) * late); };
  return group > 0 && before(group) > before(group - 1);
}

double dot(const float* w, const float* x, std::int64_t n) {
  double lanes[4] = {};
  std::int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int l = 0; l < 4; ++l) lanes[l] += static_cast<double>(w[i + l]) * x[i + l];
  for (; i < n; ++i) lanes[0] += static_cast<double>(w[i]) * x[i];
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

// Nibble's operation on the problem; bits says whether a run in which one thread is first and the
// others are late gives the bits of one thread alone.
std::vector<float> run_nibble(const Problem& p, bool& bits) {
  const cpu::Isa best = cpu::best_isa();
  cpu::CpuBackend alone(1, cpu::kernels(best), true), many(5, perturbed_kernels(best), true);
  const auto w = alone.pack(p.weight, 1);
  const std::vector<float> norm(static_cast<std::size_t>(p.k), 1.0f);
  const auto run = [&](cpu::CpuBackend& b) {
    Guarded residual(p.residual), delta(p.delta), weight(norm);
    Guarded out(p.residual.size()), y(static_cast<std::size_t>(p.n));
    const LinearOutput o{w.get(), nullptr, y.data(), p.n};
    b.add_rmsnorm_linear({.residual = residual.data(),
                          .delta = delta.data(),
                          .weight = weight.data(),
                          .eps = kEps,
                          .residual_out = out.data(),
                          .m = 1,
                          .k = p.k,
                          .outputs = {&o, 1}});
    return y.copy();
  };
  const std::vector<float> want = run(alone);
  FirstThenOthers order;
  set_disturbance(&order);
  bits = true;
  std::vector<float> y;
  for (int i = 0; i < 10; ++i) {
    order.begin();
    y = run(many);
    bits = bits && same_bits(y, want);
  }
  set_disturbance(nullptr);
  return y;
}

}  // namespace

Problem::Problem(std::int64_t rows, std::int64_t columns)
    : n(rows),
      k(columns),
      residual(normal_floats(static_cast<std::size_t>(columns), 11)),
      delta(normal_floats(static_cast<std::size_t>(columns), 12)),
      weight(WeightType::Int4, rows, columns, 128, 13) {}

Launch launch_in_place(const Problem& p, double late) {
  const std::int64_t groups = (p.n + kGroupRows - 1) / kGroupRows;
  std::vector<float> memory = p.residual;
  Launch l{{}, std::vector<int>(static_cast<std::size_t>(groups)), p.k};
  // A work-group reads whatever the memory holds at its turn; equal readings are kept once.
  const auto read = [&](std::int64_t group) {
    std::vector<float> u = normed(memory, p.delta);
    const auto at = std::find(l.inputs.begin(), l.inputs.end(), u);
    l.seen[static_cast<std::size_t>(group)] = static_cast<int>(at - l.inputs.begin());
    if (at == l.inputs.end()) l.inputs.push_back(std::move(u));
  };
  for (std::int64_t g = 0; g < groups; ++g)
    if (!is_late(g, late)) read(g);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] += p.delta[i];  // work-group 0 writes
  for (std::int64_t g = 0; g < groups; ++g)
    if (is_late(g, late)) read(g);
  return l;
}

Launch launch_split_above_512(const Problem& p, double late) {
  if (p.n <= 512) return launch_in_place(p, late);
  const std::int64_t groups = (p.n + kGroupRows - 1) / kGroupRows;
  return {{normed(p.residual, p.delta)},
          std::vector<int>(static_cast<std::size_t>(groups)),
          p.k / 512 * 512};
}

std::vector<double> launch_errors(const Problem& p, std::span<const Launch> launches,
                                  const float* y_given) {
  const std::vector<float> right = normed(p.residual, p.delta);
  const std::size_t count = launches.size() + (y_given != nullptr ? 1 : 0);
  std::vector<double> squares(count), row_squares(count * static_cast<std::size_t>(p.n)),
      ideal(static_cast<std::size_t>(p.n));
  std::atomic<std::int64_t> next{0};
  ThreadPool pool(0);
  pool.run([&](int) {
    std::vector<float> before(static_cast<std::size_t>(kGroupRows * p.k));
    for (std::int64_t g; (g = next.fetch_add(1)) * kGroupRows < p.n;) {
      const std::int64_t first = g * kGroupRows,
                         rows = std::min<std::int64_t>(kGroupRows, p.n - first);
      p.weight.unquantised(first, rows, before.data());
      const std::vector<float> w = dequantise(p.weight, first, rows);
      for (std::int64_t r = 0; r < rows; ++r) {
        const auto row = static_cast<std::size_t>(first + r);
        ideal[row] = dot(before.data() + r * p.k, right.data(), p.k);
        for (std::size_t i = 0; i < count; ++i) {
          const double y = i == launches.size()
                               ? static_cast<double>(y_given[row])
                               : dot(w.data() + r * p.k,
                                     launches[i]
                                         .inputs[static_cast<std::size_t>(
                                             launches[i].seen[static_cast<std::size_t>(g)])]
                                         .data(),
                                     launches[i].columns);
          row_squares[i * static_cast<std::size_t>(p.n) + row] =
              (y - ideal[row]) * (y - ideal[row]);
        }
      }
    }
  });
  double of = 0;
  for (const double y : ideal) of += y * y;
  for (std::size_t i = 0; i < count; ++i) {
    for (std::int64_t r = 0; r < p.n; ++r)
      squares[i] += row_squares[i * static_cast<std::size_t>(p.n) + static_cast<std::size_t>(r)];
    squares[i] = std::sqrt(squares[i] / of);
  }
  return squares;
}

Story tell_story() {
  Story s;
  for (const auto& [n, k] : {std::pair<std::int64_t, std::int64_t>{8704, 5120},
                             {256, 2048},
                             {5120, 4352},
                             {1024, 256}}) {
    const Problem p(n, k);
    std::vector<Launch> launches{launch_in_place(p, 0), launch_in_place(p, kPublishedLate),
                                 launch_split_above_512(p, kPublishedLate)};
    constexpr int kPoints = 12;
    if (s.lines.empty())
      for (int i = 0; i <= kPoints; ++i)
        launches.push_back(launch_in_place(p, static_cast<double>(i) / kPoints));
    Story::Line line{n, k, 0, 0, 0, 0, false};
    const std::vector<float> y = run_nibble(p, line.nibble_bits);
    const std::vector<double> e = launch_errors(p, launches, y.data());
    line.in_order = e[0], line.in_place = e[1], line.split = e[2], line.nibble = e.back();
    if (s.lines.empty())
      for (int i = 0; i <= kPoints; ++i)
        s.curve.emplace_back(static_cast<double>(i) / kPoints, e[static_cast<std::size_t>(3 + i)]);
    s.lines.push_back(line);
  }
  return s;
}

}  // namespace nibble::verify
