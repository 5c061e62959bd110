#include "verify/stress.h"

#include <algorithm>

#include "verify/buffer.h"
#include "verify/operation.h"

namespace nibble::verify {

StressResult stress(const Case& c, Activations activations, int threads, std::int64_t calls,
                    const std::function<void(double)>& progress) {
  const cpu::Isa best = cpu::best_isa();
  cpu::CpuBackend alone(1, cpu::kernels(best), true);
  cpu::CpuBackend many(threads, perturbed_kernels(best), true);
  const NormalWeight source(c.type, c.n, c.k, c.group, 1);
  const auto w = alone.pack(source, c.pieces);
  const Inputs in(c.k, false, 1);
  const Run quiet{"undisturbed", &alone, w.get(), &in, activations, {0}};
  const Outputs want = execute(quiet);

  const auto count = static_cast<std::size_t>(c.k);
  Guarded residual({in.residual.data(), in.residual.data() + count});
  Guarded delta({in.delta.data(), in.delta.data() + count}), weight(in.weight);
  Guarded h(count), u(count), y(static_cast<std::size_t>(c.n));
  const LinearOutput o{w.get(), nullptr, y.data(), c.n};
  RandomDelays delays(static_cast<std::uint64_t>(calls));
  set_disturbance(&delays);
  StressResult r;
  for (; r.calls < calls; ++r.calls) {
    h.poison(), u.poison(), y.poison();
    many.add_rmsnorm_linear({.residual = residual.data(),
                             .delta = delta.data(),
                             .weight = weight.data(),
                             .eps = kEps,
                             .residual_out = h.data(),
                             .normed = u.data(),
                             .m = 1,
                             .k = c.k,
                             .activations = activations,
                             .outputs = {&o, 1}});
    const bool same = same_bits(h.data(), want.h.data(), h.size()) &&
                      same_bits(u.data(), want.u.data(), u.size()) &&
                      same_bits(y.data(), want.y.data(), y.size());
    if (!same && ++r.differing == 1) {
      std::size_t i = 0;
      while (i + 1 < y.size() && same_bits(y.data() + i, want.y.data() + i, 1)) ++i;
      r.first =
          fmt::format("call {}: y[{}] is {}, expected {}", r.calls, i, y.data()[i], want.y[i]);
    }
    if (r.calls % 256 == 0) progress(static_cast<double>(r.calls) / static_cast<double>(calls));
  }
  set_disturbance(nullptr);
  return r;
}

namespace {

// Few normal rows over and over: what takes long for a matrix is to draw and to quantise it. A
// prime number of rows, so that no tile is like those near it.
class RepeatedRows final : public WeightSource {
 public:
  RepeatedRows(const Case& c, std::uint64_t seed)
      : WeightSource("normal", {c.type, c.n, c.k, is_quantised(c.type) ? c.group : 0, true}) {
    constexpr std::int64_t kDistinct = 127;
    const NormalWeight few(c.type, std::min(c.n, kDistinct), c.k, c.group, seed);
    distinct_.resize(static_cast<std::size_t>(few.format().n));
    for (std::size_t i = 0; i < distinct_.size(); ++i)
      few.read(static_cast<std::int64_t>(i), 1, distinct_[i]);
  }
  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override {
    out.codes.clear(), out.scales.clear(), out.offsets.clear(), out.values.clear();
    for (; count > 0; ++row, --count) {
      const WeightRows& r = distinct_[static_cast<std::size_t>(row) % distinct_.size()];
      const auto append = [](auto& to, const auto& from) {
        to.insert(to.end(), from.begin(), from.end());
      };
      append(out.codes, r.codes), append(out.scales, r.scales);
      append(out.offsets, r.offsets), append(out.values, r.values);
    }
  }

 private:
  std::vector<WeightRows> distinct_;
};

// A chain of calls on m rows of input: residual_out of one is the residual of the next. down, of a
// row for each column of w: what it makes of y is then the next one's delta.
class Chain {
 public:
  Chain(Backend& b, const Weight& w, const Weight* down, const Inputs& in, Activations a,
        std::int64_t m, int calls)
      : b_(b),
        w_(w),
        down_(down),
        in_(in),
        activations_(a),
        m_(m),
        calls_(calls),
        count_(static_cast<std::size_t>(m * in.k)),
        poison_(static_cast<std::size_t>(calls * m * w.format().n),
                std::bit_cast<float>(0xffffffffu)),
        delta_(b, first_rows(in.delta)),
        weight_(b, in.weight),
        h_{Buffer(b, count_), Buffer(b, count_)},
        fed_{Buffer(b, count_), Buffer(b, count_)},
        y_(b, poison_.size()) {}

  // y of every call, then the residual.
  std::vector<float> run(Backend& schedule, Plan plan) {
    const std::int64_t n = w_.format().n;
    b_.upload(h_[0].data(), in_.residual.data(), count_ * sizeof(float));
    b_.upload(y_.data(), poison_.data(), poison_.size() * sizeof(float));
    std::vector<float> last(count_);
    b_.download(last.data(), h_[0].data(), sizeof(float));  // schedules have a queue each
    for (int i = 0; i < calls_; ++i) {
      const LinearOutput o{&w_, nullptr, y_.data() + i * m_ * n, n},
          fed{down_, nullptr, fed_[i % 2].data(), in_.k};
      const bool feeds = down_ != nullptr && i > 0;
      schedule.add_rmsnorm_linear({.residual = h_[i % 2].data(),
                                   .delta = feeds ? fed_[1 - i % 2].data() : delta_.data(),
                                   .weight = weight_.data(),
                                   .eps = kEps,
                                   .residual_out = h_[1 - i % 2].data(),
                                   .m = m_,
                                   .k = in_.k,
                                   .activations = activations_,
                                   .outputs = {&o, 1},
                                   .plan = plan});
      if (down_ != nullptr) schedule.linear({o.y, m_, n, activations_, {&fed, 1}});
    }
    schedule.download(last.data(), h_[calls_ % 2].data(), count_ * sizeof(float));
    std::vector<float> all = y_.copy();
    all.insert(all.end(), last.begin(), last.end());
    return all;
  }

 private:
  std::vector<float> first_rows(const std::vector<float>& v) const {
    return {v.begin(), v.begin() + static_cast<std::ptrdiff_t>(count_)};
  }

  Backend& b_;
  const Weight& w_;
  const Weight* down_;
  const Inputs& in_;
  Activations activations_;
  std::int64_t m_;
  int calls_;
  std::size_t count_;
  std::vector<float> poison_;
  Buffer delta_, weight_, h_[2], fed_[2], y_;
};

}  // namespace

StressResult stress(const Case& c, Activations activations,
                    std::span<const std::unique_ptr<Backend>> schedules, std::int64_t calls,
                    const std::function<void(double)>& progress) {
  constexpr int kChain = 16;
  Backend& device = *schedules[0];
  cpu::CpuBackend cpu(0, cpu::kernels(cpu::best_isa()), true);
  const RepeatedRows source(c, 1);
  const auto w = device.pack(source, c.pieces), w_cpu = cpu.pack(source, c.pieces);
  std::unique_ptr<Weight> down, down_cpu;
  if (c.group == 0 || c.n % c.group == 0) {
    const RepeatedRows back({c.k, c.n, c.type, c.group, kRowParallelPieces}, 2);
    down = device.pack(back, kRowParallelPieces), down_cpu = cpu.pack(back, kRowParallelPieces);
  }
  const Inputs in(c.k, false, 1);
  Chain chains[]{{device, *w, down.get(), in, activations, 1, kChain},
                 {device, *w, down.get(), in, activations, kRows, kChain}};
  std::vector<float> want[2];
  for (const int i : {0, 1}) {
    Chain chain(cpu, *w_cpu, down_cpu.get(), in, activations, i == 0 ? 1 : kRows, kChain);
    want[i] = chain.run(cpu, Plan::Auto);
  }
  StressResult r;
  for (std::size_t turn = 0; r.calls < calls; ++turn, r.calls += kChain) {
    const int of = turn % 8 == 7;
    Backend& schedule = *schedules[turn / 3 % schedules.size()];
    const std::vector<float> got =
        chains[of].run(schedule, (turn + turn / 8) % 2 == 0 ? Plan::Fused : Plan::Prepass);
    if (!same_bits(got, want[of]) && ++r.differing == 1) {
      std::size_t i = 0;
      while (same_bits(&got[i], &want[of][i], 1)) ++i;
      r.first = fmt::format("{}, chain {}: value {} is {}, expected {}", schedule.describe(), turn,
                            i, got[i], want[of][i]);
    }
    if (turn % 16 == 0) progress(static_cast<double>(r.calls) / static_cast<double>(calls));
  }
  return r;
}

}  // namespace nibble::verify
