// Prompts in fp16 (Activations::Half), on the backends that have it: against the double reference,
// and a row's bits alone, in any company, over the emulator's schedules.
#include <deque>

#include "harness.h"
#include "ops/add_rmsnorm_linear.h"
#include "ops/gated_rmsnorm_linear.h"

namespace nibble {
namespace {

using harness::Buffer;
using harness::random_floats;
using harness::RandomWeight;
using harness::same_bits;

std::vector<Backend*> half_backends() {
  std::vector<Backend*> v;
  for (const auto& b : harness::backends())
    if (b->has_half()) v.push_back(b.get());
  return v;
}

struct Case {
  std::int64_t n, k, m;
  int group, pieces;
  float scale = 1;  // of x
};

std::vector<float> run(Backend& b, const RandomWeight& source, const Case& c,
                       const std::vector<float>& x, const std::vector<float>& bias) {
  const auto w = b.pack(source, c.pieces);
  const std::int64_t m = static_cast<std::int64_t>(x.size()) / c.k;
  Buffer in(b, x), out(b, static_cast<std::size_t>(m * c.n)), added(b, bias);
  const LinearOutput o{w.get(), added.data(), out.data(), c.n};
  b.linear({in.data(), m, c.k, Activations::Half, {&o, 1}});
  return out.copy();
}

void check_case(const Case& c) {
  SCOPED_TRACE(
      fmt::format("{}x{} M {} group {} pieces {} x {}", c.n, c.k, c.m, c.group, c.pieces, c.scale));
  const RandomWeight source(WeightType::Int4, c.n, c.k, c.group, 1, true);
  std::vector<float> x = random_floats(static_cast<std::size_t>(c.m * c.k), 7, c.scale);
  for (std::size_t i = 0; i < x.size(); i += 97) x[i] *= 50;
  const std::vector<float> bias = random_floats(static_cast<std::size_t>(c.n), 9, c.scale);
  const std::vector<double> xd(x.begin(), x.end());
  std::vector<double> want(static_cast<std::size_t>(c.m * c.n)), magnitude(want.size());
  linear_reference(xd.data(), c.m, c.k, dequantise(source, 0, c.n).data(), c.n, bias.data(),
                   want.data(), magnitude.data());
  std::vector<float> emulated;
  for (Backend* b : half_backends()) {
    const std::vector<float> y = run(*b, source, c, x, bias);
    for (std::size_t i = 0; i < y.size(); ++i)
      ASSERT_LE(std::fabs(y[i] - want[i]),
                harness::bound(Activations::Half, WeightType::Int4, c.k) * magnitude[i])
          << b->describe() << " element " << i;
    if (b->is_host() && emulated.empty()) emulated = y;
    if (b->is_host()) {
      ASSERT_TRUE(same_bits(y, emulated)) << b->describe();
    }
    for (std::int64_t rows = 1; rows < c.m; rows += rows < 3 ? 1 : rows / 2 + 3) {
      const std::int64_t first = c.m - rows;
      ASSERT_TRUE(same_bits(run(*b, source, c, {x.begin() + first * c.k, x.end()}, bias),
                            {y.begin() + first * c.n, y.end()}))
          << b->describe() << ": the last " << rows;
    }
  }
}

TEST(Half, EveryTail) {
  for (const int pieces : {1, 8}) {
    check_case({24, 512, 3, 128, pieces});
    check_case({1, 512, 1, 64, pieces});
    check_case({35, 1024, 9, 32, pieces});
    check_case({67, 1024, 17, 128, pieces});
  }
  for (std::int64_t n = 1; n <= 33; n += 8) check_case({n, 192, 2, 64, 1});
  for (std::int64_t k = 64; k <= 640; k += 64) check_case({17, k, 5, 32, 1});
  check_case({20, 96, 5, 32, 1});  // the last stage is half full
}

// Blocks of 64 rows, of 128 and of 160; several of them; the last one ragged.
TEST(Half, ManyRows) {
  for (const std::int64_t m : {33, 64, 65, 128, 150, 200})
    check_case({m == 150 ? std::int64_t{300} : 40, 256, m, 128, 1});  // 150: one of 160
  check_case({300, 320, 290, 64, 1});                                 // several jobs a block
}

// From a row of nothing to what fp16 could not hold.
TEST(Half, ScalesOfX) {
  for (const float scale : {0.0f, 1e-30f, 1e-6f, 1e4f, 1e12f})
    check_case({20, 256, 3, 128, 1, scale});
}

TEST(Half, NonFiniteInputReachesTheOutput) {
  const RandomWeight source(WeightType::Int4, 16, 256, 64, 1, true);
  for (Backend* b : half_backends())
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> x = random_floats(2 * 256, 2);
      x[37] = bad;
      const auto y = run(*b, source, {16, 256, 2, 64, 1}, x, std::vector<float>(16));
      for (std::size_t i = 0; i < 32; ++i) ASSERT_EQ(std::isfinite(y[i]), i >= 16);
    }
}

// Under the norms, with SwiGLU, several matrices at once: what prepared rows, given as they are,
// give.
TEST(Half, NormsAndSwiGlu) {
  const std::int64_t k = 512, m = 70, heads = 4, n[] = {40, 24, 5};
  const std::vector<float> residual = random_floats(m * k, 1, 100), delta = random_floats(m * k, 2),
                           weight = random_floats(k, 3), head_weight = random_floats(k / heads, 4);
  for (Backend* b : half_backends()) {
    std::vector<std::unique_ptr<Weight>> w;
    for (unsigned i = 0; i < 3; ++i)
      w.push_back(b->pack(RandomWeight(WeightType::Int4, n[i], k, 128, 5 + i, true), 1));
    const auto up = b->pack(RandomWeight(WeightType::Int4, n[0], k, 128, 9, true), 1);
    Buffer r(*b, residual), d(*b, delta), g(*b, weight), hg(*b, head_weight),
        h(*b, residual.size()), u(*b, residual.size());
    std::deque<Buffer> y, z;
    std::vector<LinearOutput> to, plain;
    for (unsigned i = 0; i < 3; ++i) {
      y.emplace_back(*b, static_cast<std::size_t>(m * n[i]));
      z.emplace_back(*b, static_cast<std::size_t>(m * n[i]));
    }
    for (unsigned i = 0; i < 3; ++i) {
      to.push_back({w[i].get(), nullptr, y[i].data(), n[i]});
      plain.push_back({w[i].get(), nullptr, z[i].data(), n[i]});
    }
    const auto same = [&] {
      for (unsigned i = 0; i < 3; ++i)
        if (!same_bits(y[i].copy(), z[i].copy())) return false;
      return true;
    };
    b->add_rmsnorm_linear({.residual = r.data(),
                           .delta = d.data(),
                           .weight = g.data(),
                           .residual_out = h.data(),
                           .normed = u.data(),
                           .m = m,
                           .k = k,
                           .activations = Activations::Half,
                           .outputs = to});
    b->linear({u.data(), m, k, Activations::Half, plain});
    EXPECT_TRUE(same()) << b->describe();
    const std::vector<float> sum = h.copy();
    for (std::size_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum[i], residual[i] + delta[i]);

    b->gated_rmsnorm_linear({.o = r.data(),
                             .z = d.data(),
                             .weight = hg.data(),
                             .eps = 1e-6f,
                             .m = m,
                             .heads = heads,
                             .dim = k / heads,
                             .activations = Activations::Half,
                             .outputs = to});
    std::vector<double> want(residual.size());
    std::vector<float> rounded(want.size());
    gated_rmsnorm_reference({.o = residual.data(),
                             .z = delta.data(),
                             .weight = head_weight.data(),
                             .eps = 1e-6f,
                             .m = m,
                             .heads = heads,
                             .dim = k / heads},
                            want.data());
    const std::vector<float> first = y[0].copy();
    std::vector<double> expected(first.size()), magnitude(first.size());
    linear_reference(
        want.data(), m, k,
        dequantise(RandomWeight(WeightType::Int4, n[0], k, 128, 5, true), 0, n[0]).data(), n[0],
        nullptr, expected.data(), magnitude.data());
    for (std::size_t i = 0; i < first.size(); ++i)
      ASSERT_LE(std::fabs(first[i] - expected[i]), 1e-3 * magnitude[i]) << i;

    // SwiGLU of two matrices is SwiGLU of what they give apart.
    Buffer gate(*b, first.size()), other(*b, first.size()), act(*b, first.size());
    const LinearOutput apart[] = {{w[0].get(), nullptr, gate.data(), n[0]},
                                  {up.get(), nullptr, other.data(), n[0]}},
                       both[] = {{w[0].get(), nullptr, act.data(), n[0]}, {.w = up.get()}};
    b->linear({u.data(), m, k, Activations::Half, apart});
    b->linear({u.data(), m, k, Activations::Half, both, Epilogue::SwiGlu});
    const std::vector<float> a = act.copy(), p = gate.copy(), q = other.copy();
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double s = p[i] / (1 + std::exp(-static_cast<double>(p[i])));
      ASSERT_NEAR(a[i], s * q[i], 1e-6 * std::fabs(s * q[i]) + 1e-30) << i;
    }
  }
}

// Scales too large for fp16: the weights go the exact way.
TEST(Half, WeightsBeyondFp16) {
  class Large final : public WeightSource {
   public:
    Large() : WeightSource("large", {WeightType::Int4, 16, 256, 64, true}) {}
    void read(std::int64_t, std::int64_t count, WeightRows& out) const override {
      out.codes.assign(static_cast<std::size_t>(count * 256), 0);
      out.scales.assign(static_cast<std::size_t>(count * 4), 60000.0f);
    }
  } const large;
  const std::vector<float> x(256, 1.0f);
  for (Backend* b : half_backends()) {
    const auto w = b->pack(large, 1);
    Buffer in(*b, x), out(*b, 16);
    const LinearOutput o{w.get(), nullptr, out.data(), 16};
    b->linear({in.data(), 1, 256, Activations::Half, {&o, 1}});
    for (const float y : out.copy()) ASSERT_NEAR(y, -8.0 * 60000 * 256, 2e3);
  }
}

TEST(Half, IsNotForTheCpu) {
  Backend& b = *harness::backends()[0];
  const auto w = b.pack(RandomWeight(WeightType::Int4, 16, 256, 64, 1, true), 1);
  const std::vector<float> x(256, 1.0f);
  std::vector<float> y(16);
  const LinearOutput o{w.get(), nullptr, y.data(), 16};
  EXPECT_THROW(b.linear({x.data(), 1, 256, Activations::Half, {&o, 1}}), Error);
}

}  // namespace
}  // namespace nibble
