#include "verify/harness.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "verify/operation.h"

namespace nibble::verify {
namespace {

// Rows of W that a slow instruction set runs of a large matrix: its first, middle and last ones.
constexpr std::int64_t kWhole = std::int64_t{1} << 24, kSlice = 512;  // elements, rows

const std::vector<int>& all_rows() {
  static const std::vector<int> rows{0, 1, 2, 3, 4, 5, 6, 7};
  return rows;
}

// In double: u = rmsnorm(h), then y and sum |w u| of the dequantised weights and y of the weights
// before they were quantised.
struct Reference {
  std::vector<double> h, u;                 // [kRows, K]
  std::vector<double> y, magnitude, ideal;  // [N, kRows]
};

// Rows are the inner loop: their sums stay in registers and each runs in ascending order.
void dots(const float* w, const float* before, const double* columns, std::int64_t k, double* y,
          double* magnitude, double* ideal) {
  double a[kRows] = {}, b[kRows] = {}, c[kRows] = {};
  for (std::int64_t i = 0; i < k; ++i)
    for (int r = 0; r < kRows; ++r) {
      const double x = columns[i * kRows + r], t = w[i] * x;
      a[r] += t, b[r] += std::fabs(t), c[r] += before[i] * x;
    }
  std::copy_n(a, kRows, y), std::copy_n(b, kRows, magnitude), std::copy_n(c, kRows, ideal);
}

Reference reference(const NormalWeight& w, const Inputs& in, ThreadPool& pool) {
  const std::int64_t n = w.format().n, k = in.k;
  Reference ref;
  const auto count = static_cast<std::size_t>(kRows * k),
             outs = static_cast<std::size_t>(n * kRows);
  ref.h.resize(count), ref.u.resize(count);
  ref.y.resize(outs), ref.magnitude.resize(outs), ref.ideal.resize(outs);
  add_rmsnorm_reference({.residual = in.residual.data(),
                         .delta = in.delta.data(),
                         .weight = in.weight.data(),
                         .eps = kEps,
                         .unit_offset = in.unit_offset,
                         .m = kRows,
                         .k = k},
                        ref.h.data(), ref.u.data());
  std::vector<double> columns(count);
  for (std::int64_t r = 0; r < kRows; ++r)
    for (std::int64_t c = 0; c < k; ++c)
      columns[static_cast<std::size_t>(c * kRows + r)] = ref.u[static_cast<std::size_t>(r * k + c)];
  constexpr std::int64_t kBlockRows = 16;
  std::atomic<std::int64_t> next{0};
  pool.run([&](int) {
    std::vector<float> before(static_cast<std::size_t>(kBlockRows * k));
    for (std::int64_t first; (first = next.fetch_add(kBlockRows)) < n;) {
      const std::int64_t rows = std::min(kBlockRows, n - first);
      w.unquantised(first, rows, before.data());
      const std::vector<float> values = dequantise(w, first, rows);
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t at = (first + r) * kRows;
        dots(values.data() + r * k, before.data() + r * k, columns.data(), k, ref.y.data() + at,
             ref.magnitude.data() + at, ref.ideal.data() + at);
      }
    }
  });
  return ref;
}

// Errors of one mode; the failure, where there is one.
std::string judge(const Reference& ref, const Outputs& got, Row& row) {
  const std::int64_t n = row.shape.n;
  const double norm_rounding = 4e-6;  // of u itself, which every mode computes in fp32
  row.bound = bound(row.activations, row.shape.type, row.shape.k) + norm_rounding;
  for (std::size_t i = 0; i < ref.h.size(); ++i) {
    if (!(std::fabs(got.h[i] - ref.h[i]) <= 1e-7 * std::fabs(ref.h[i])))
      return fmt::format("residual_out[{}] is {}, expected {}", i, got.h[i], ref.h[i]);
    if (!(std::fabs(got.u[i] - ref.u[i]) <= norm_rounding * std::fabs(ref.u[i])))
      return fmt::format("normed[{}] is {}, expected {}", i, got.u[i], ref.u[i]);
  }
  double squares = 0, of = 0;
  std::string failure;
  for (std::int64_t m = 0; m < kRows; ++m)
    for (std::int64_t j = 0; j < n; ++j) {
      const auto at = static_cast<std::size_t>(j * kRows + m);
      const double y = got.y[static_cast<std::size_t>(m * n + j)];
      const double error = std::fabs(y - ref.y[at]) / ref.magnitude[at];
      squares += (y - ref.ideal[at]) * (y - ref.ideal[at]), of += ref.ideal[at] * ref.ideal[at];
      if (!(error <= row.bound) && failure.empty())
        failure = fmt::format("y[{}, {}] is {}, expected {} within {:.1e} of {:.3g}", m, j, y,
                              ref.y[at], row.bound, ref.magnitude[at]);
      row.worst = std::isnan(error) ? error : std::max(row.worst, error);
    }
  row.weight_error = std::sqrt(squares / of);
  return failure;
}

}  // namespace

std::vector<std::unique_ptr<cpu::CpuBackend>>& backends() {
  static auto all = [] {
    std::vector<std::unique_ptr<cpu::CpuBackend>> v;
    const auto add = [&](cpu::Isa isa, int threads) {
      v.push_back(std::make_unique<cpu::CpuBackend>(threads, cpu::kernels(isa), true));
    };
    for (int isa = 0; isa < cpu::kIsaCount; ++isa)
      if (cpu::isa_supported(static_cast<cpu::Isa>(isa)))
        for (const int threads : {1, 3}) add(static_cast<cpu::Isa>(isa), threads);
    add(cpu::best_isa(), 8);
    return v;
  }();
  return all;
}

Harness::Harness(const cpu::Kernels& tested) : pool_(0) {
  const cpu::Isa best = cpu::best_isa();
  for (const int threads : {2, 1, 3, 5, 8})
    schedules_.push_back(std::make_unique<cpu::CpuBackend>(threads, tested, true));
  for (int i = cpu::kIsaCount - 1; i >= 0; --i)
    if (const auto isa = static_cast<cpu::Isa>(i); isa != best && cpu::isa_supported(isa))
      others_.push_back(std::make_unique<cpu::CpuBackend>(2, cpu::kernels(isa), true));
  adversary_ = std::make_unique<cpu::CpuBackend>(5, perturbed_kernels(best), true);
}
Harness::Harness(std::vector<std::unique_ptr<Backend>> tested)
    : pool_(0), schedules_(std::move(tested)) {
  for (const cpu::Isa isa : {cpu::best_isa(), cpu::Isa::Scalar})
    if (others_.empty() || isa != cpu::best_isa())
      others_.push_back(std::make_unique<cpu::CpuBackend>(0, cpu::kernels(isa), true));
}
Harness::~Harness() = default;

std::string Harness::describe() const {
  std::vector<std::string> sets{schedules_[0]->describe()};
  for (const auto& b : others_) sets.push_back(b->describe());
  if (adversary_)
    return fmt::format("{}; the first also with 1, 3, 5 and 8 threads", fmt::join(sets, ", "));
  for (std::size_t i = 1; i < schedules_.size(); ++i) sets.push_back(schedules_[i]->describe());
  return fmt::format("{}", fmt::join(sets, "; "));
}

std::uint64_t Harness::memory(const Case& c) {
  const WeightFormat f{c.type, c.n, c.k, c.group, true};
  const auto outputs = static_cast<std::uint64_t>(c.n * kRows);
  return f.bytes() + outputs * (3 * sizeof(double) + 6 * sizeof(float)) + (64u << 20);
}

std::vector<Row> Harness::check(const Case& c, const std::vector<Activations>& modes) {
  const Inputs in(c.k, c.n % 2 == 1, static_cast<std::uint64_t>(c.n * 1000003 + c.k));
  const std::uint64_t seed = static_cast<std::uint64_t>(c.n * 8191 + c.k);
  const NormalWeight source(c.type, c.n, c.k, c.group, seed);
  std::vector<Row> rows;
  std::vector<Outputs> base;
  {
    const auto w = schedules_[0]->pack(source, c.pieces);
    const Reference ref = reference(source, in, pool_);
    for (const Activations a : modes) {
      if (!is_quantised(c.type) && a != Activations::Fp32) continue;
      Row& row = rows.emplace_back(Row{.shape = c, .activations = a});
      const Run whole{schedules_[0]->describe(), schedules_[0].get(), w.get(), &in, a, all_rows()};
      base.emplace_back();
      try {
        base.back() = execute(whole);
        row.failure = judge(ref, base.back(), row);
      } catch (const Error& e) {
        row.failure = e.what();
      }
      const auto same = [&](Run r) {
        if (!row.failure.empty()) return;
        ++row.runs;
        row.failure = compare(r, base.back(), c.n);
      };
      const auto with = [&](std::string what, auto... changes) {
        Run r = whole;
        r.what = std::move(what);
        (changes(r), ...);
        same(r);
      };
      with("repetition");
      for (std::size_t t = 1; t < schedules_.size(); ++t)
        with(schedules_[t]->describe(), [&](Run& r) { r.backend = schedules_[t].get(); });
      if (!adversary_)  // blocks matter to a device in every plan
        for (std::size_t t = 1; t < schedules_.size(); ++t)
          for (const Plan p : {Plan::Fused, Plan::Prepass})
            with(fmt::format("{}, {}", schedules_[t]->describe(),
                             p == Plan::Fused ? "fused" : "prepass"),
                 [&](Run& r) { r.backend = schedules_[t].get(), r.plan = p; });
      for (const Plan p : {Plan::Fused, Plan::Prepass})
        with(p == Plan::Fused ? "fused" : "prepass, then GEMV", [&](Run& r) { r.plan = p; });
      with("residual-add + RMSNorm, then linear", [](Run& r) { r.twin = true; });
      for (int i = 0; i < kRows; ++i)
        with(fmt::format("row {} alone", i), [&](Run& r) { r.rows = {i}; });
      for (int m = 2; m < kRows; ++m)
        with(fmt::format("M = {}", m), [&](Run& r) { r.rows.resize(static_cast<std::size_t>(m)); });
      for (int shift = 1; shift < kRows; ++shift)
        with(fmt::format("rows moved {} places", shift),
             [&](Run& r) { std::rotate(r.rows.begin(), r.rows.begin() + shift, r.rows.end()); });
      if (!adversary_) continue;
      FirstThenOthers order;
      set_disturbance(&order);
      for (const int m : {1, kRows}) {
        order.begin();
        with(fmt::format("M = {}, one thread first and the others late", m), [&](Run& r) {
          r.backend = adversary_.get(), r.rows.resize(static_cast<std::size_t>(m));
        });
      }
      set_disturbance(nullptr);
    }
  }
  // The other instruction sets, one after the other: each has its weights in its own order.
  for (const auto& b : others_) {
    std::vector<std::int64_t> slices{0};
    std::int64_t count = c.n;
    if (c.n * c.k > kWhole && c.n > 3 * kSlice) slices = {0, c.n / 2, c.n - kSlice}, count = kSlice;
    for (const std::int64_t first : slices) {
      const NormalWeight part(c.type, count, c.k, c.group, seed, first);
      const auto w = b->pack(part, c.pieces);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        if (!rows[i].failure.empty()) continue;
        ++rows[i].runs;
        rows[i].failure = compare({b->describe(), b.get(), w.get(), &in, rows[i].activations,
                                   all_rows(), Plan::Auto, false, first},
                                  base[i], c.n);
      }
    }
    if (count < c.n)
      for (Row& row : rows)
        row.note = fmt::format("other instruction sets: {} of {} rows", 3 * kSlice, c.n);
  }
  return rows;
}

}  // namespace nibble::verify
