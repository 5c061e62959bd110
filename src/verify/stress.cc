#include "verify/stress.h"

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

}  // namespace nibble::verify
