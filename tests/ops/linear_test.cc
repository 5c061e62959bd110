#include "ops/linear.h"

#include <algorithm>

#include "harness.h"
#include "ops/add_rmsnorm_linear.h"

namespace nibble {
namespace {

using harness::Buffer;
using harness::random_floats;
using harness::RandomWeight;
using harness::same_bits;

struct Case {
  WeightType type;
  std::int64_t n, k, m;
  int group;
  int pieces;
  bool scales_f16;
};

std::string name(const Case& c, Activations a) {
  return fmt::format("{} {}x{} group {} M {} pieces {} f16 scales {} {}", weight_type_name(c.type),
                     c.n, c.k, c.group, c.m, c.pieces, c.scales_f16, activations_name(a));
}

// y of one backend, rows [first, first + m) of x only.
std::vector<float> run(Backend& b, const RandomWeight& source, const Case& c, Activations a,
                       const std::vector<float>& x, const std::vector<float>* bias) {
  const auto w = b.pack(source, c.pieces);
  Buffer in(b, x), out(b, static_cast<std::size_t>(c.m * c.n)),
      added(b, bias != nullptr ? *bias : std::vector<float>());
  const LinearOutput o{w.get(), bias != nullptr ? added.data() : nullptr, out.data(), c.n};
  b.linear({in.data(), c.m, c.k, a, {&o, 1}});
  return out.copy();
}

void check_case(const Case& c, Activations a) {
  SCOPED_TRACE(name(c, a));
  const RandomWeight source(c.type, c.n, c.k, c.group, static_cast<unsigned>(c.n * 31 + c.k),
                            c.scales_f16);
  std::vector<float> x = random_floats(static_cast<std::size_t>(c.m * c.k), 7);
  if (a != Activations::Int8)  // eight bits cannot hold an outlier and its block within the bound
    for (std::int64_t i = 0; i < c.k; i += 97) x[static_cast<std::size_t>(i)] *= 50;
  const std::vector<float> bias = random_floats(static_cast<std::size_t>(c.n), 9);
  const auto& all = harness::backends();
  const std::vector<float> y = run(*all[0], source, c, a, x, &bias);

  const std::vector<float> w = dequantise(source, 0, c.n);
  const std::vector<double> xd(x.begin(), x.end());
  std::vector<double> want(y.size()), magnitude(y.size());
  linear_reference(xd.data(), c.m, c.k, w.data(), c.n, bias.data(), want.data(), magnitude.data());
  for (std::size_t i = 0; i < y.size(); ++i)
    ASSERT_LE(std::fabs(y[i] - want[i]), harness::bound(a, c.type, c.k) * magnitude[i])
        << "element " << i;

  for (std::size_t b = 1; b < all.size(); ++b)
    ASSERT_TRUE(same_bits(run(*all[b], source, c, a, x, &bias), y)) << all[b]->describe();
  ASSERT_TRUE(same_bits(run(*all.back(), source, c, a, x, &bias), y)) << "repetition";
  for (std::int64_t i = 0; i < c.m; ++i) {  // a row alone
    Case one = c;
    one.m = 1;
    const std::vector<float> xi(x.begin() + i * c.k, x.begin() + (i + 1) * c.k);
    const std::vector<float> yi(y.begin() + i * c.n, y.begin() + (i + 1) * c.n);
    ASSERT_TRUE(same_bits(run(*all.back(), source, one, a, xi, &bias), yi))
        << "row " << i << " alone";
  }
}

class LinearTest : public testing::TestWithParam<WeightType> {};

TEST_P(LinearTest, MatchesReferenceAndBitsAgreeEverywhere) {
  const WeightType t = GetParam();
  const std::vector<int> groups = is_quantised(t) ? std::vector{32, 64, 128} : std::vector{0};
  for (const Activations a : {Activations::Int16, Activations::Int8, Activations::Fp32}) {
    if (!is_quantised(t) && a != Activations::Fp32) continue;
    for (const int g : groups)
      for (const int pieces : {1, 8}) {
        check_case({t, 24, 5 * std::max(g, 32), 2, g, pieces, true}, a);
        check_case({t, 1, std::max(g, 32), 1, g, pieces, true}, a);
        check_case({t, 67, 1152, 3, g, pieces, true}, a);
        check_case({t, 31, 640, 9, g, pieces, false}, a);
      }
  }
}

TEST_P(LinearTest, EveryTail) {
  const WeightType t = GetParam();
  const int g = is_quantised(t) ? 32 : 0;
  for (std::int64_t n = 1; n <= 33; n += 4)
    check_case({t, n, 96, 1, g, 8, true}, Activations::Int16);
  for (std::int64_t m = 1; m <= 11; ++m)
    check_case({t, 17, 160, m, g, 1, true}, Activations::Int16);
  if (g == 0)
    for (std::int64_t k = 1; k <= 70; k += 3)
      check_case({t, 5, k, 2, g, 8, true}, Activations::Fp32);
}

INSTANTIATE_TEST_SUITE_P(All, LinearTest,
                         testing::Values(WeightType::Int4, WeightType::Int4Aff, WeightType::Int8,
                                         WeightType::F16, WeightType::BF16, WeightType::F32),
                         [](const auto& i) {
                           std::string s(weight_type_name(i.param));
                           std::erase(s, '-');
                           return s;
                         });

// The promise of tensor parallelism: the pieces of a row-parallel operation, computed apart and
// added as a tree, are the whole.
TEST(Linear, PiecesAddUpAsATree) {
  const std::int64_t n = 20, k = 1024;
  const RandomWeight source(WeightType::F32, n, k, 0, 3);
  const std::vector<float> x = random_floats(k, 4);
  Backend& b = *harness::backends().back();
  const std::vector<float> whole =
      run(b, source, {WeightType::F32, n, k, 1, 0, 8, true}, Activations::Fp32, x, nullptr);
  std::vector<float> piece[8];
  const std::vector<float> w = dequantise(source, 0, n);
  for (int p = 0; p < 8; ++p) {
    std::vector<float> xp(x.size(), 0.0f);
    for (std::int64_t c = piece_begin(k, 8, p); c < piece_begin(k, 8, p + 1); ++c)
      xp[static_cast<std::size_t>(c)] = x[static_cast<std::size_t>(c)];
    piece[p] =
        run(b, source, {WeightType::F32, n, k, 1, 0, 1, true}, Activations::Fp32, xp, nullptr);
  }
  for (std::size_t i = 0; i < whole.size(); ++i) {
    float s[8];
    for (int p = 0; p < 8; ++p) s[p] = piece[p][i];
    const float tree = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
    ASSERT_EQ(tree, whole[i]);
  }
}

// Many rows: more than a tile of them, whole and ragged.
TEST(Linear, ManyRows) {
  for (const WeightType t : {WeightType::Int4, WeightType::Int8})
    for (const int pieces : {1, 8}) {
      check_case({t, 35, 512, 70, 128, pieces, true}, Activations::Int16);
      check_case({t, 17, 256, 9, 64, pieces, false}, Activations::Int8);
    }
}

// K long enough for several segments, whole and not, in one piece and in eight; of one block of a
// GPU an odd number of tiles, whose last is shared out by segments; 4 rows and more take another
// kernel there.
TEST(Linear, LongSums) {
  for (const int pieces : {1, 8})
    for (const std::int64_t k : {2048, 2560, 5120, 7168, 17408})
      for (const int m : {1, 3, 8})
        check_case({WeightType::Int4, 40, k, m, k == 2560 ? 64 : 128, pieces, true},
                   m == 3 ? Activations::Int8 : Activations::Int16);
}
// Enough values of x for blocks that have a piece each, little else: for sanitizers, too.
TEST(Linear, ShortPieces) {
  check_case({WeightType::Int4, 35, 512, 8, 64, 8, true}, Activations::Int16);
  check_case({WeightType::Int4, 20, 1536, 3, 64, 4, true}, Activations::Int8);
}
// Weights in fp32 and halves whose columns come in whole stages: a chain of additions each.
TEST(Linear, PlainChains) {
  for (const WeightType t : {WeightType::F32, WeightType::F16, WeightType::BF16})
    for (const auto& [n, k, m] : {std::tuple{40, 704, 1}, {35, 5120, 5}, {7, 17408, 2}})
      check_case({t, n, k, m, 0, 1, true}, Activations::Int16);
}
// A row of x longer than a multiprocessor's shared memory.
TEST(Linear, VeryLongRows) {
  for (const int m : {1, 8, 9})
    check_case({WeightType::Int4, 20, 62080, m, 128, 8, true}, Activations::Int16);
  check_case({WeightType::Int8, 5, 62080, 2, 128, 1, true}, Activations::Int8);
  check_case({WeightType::Int4Aff, 5, 124160, 1, 32, 8, false}, Activations::Fp32);
}
// Pieces of eight segments of 4 stages, of 5 and of both, of which a warp of a GPU has one.
TEST(Linear, LongSumsOfManyTiles) {
  for (const std::int64_t k : {17408, 16896, 18432, 20480})
    check_case({WeightType::Int4, 150, k, k == 17408 ? 8 : 5, 128, 8, true}, Activations::Int16);
  for (const int m : {1, 4, 6})  // two groups a stage
    check_case({WeightType::Int4, 150, 17408, m, 32, 8, true}, Activations::Int16);
}
// Shards' pieces; rows of W enough for blocks that have several tiles of a piece.
TEST(Linear, LongSumsOfShards) {
  for (const int pieces : {2, 4, 8})
    for (const std::int64_t k : {4352, 8192})
      for (const int m : {2, 4, 7})
        check_case({WeightType::Int4, 300, k, m, 64, pieces, true},
                   m == 4 ? Activations::Int8 : Activations::Int16);
}

TEST(Linear, NonFiniteInputReachesTheOutput) {
  for (const float bad : {NAN, INFINITY, -INFINITY})
    for (const Activations a : {Activations::Int16, Activations::Int8, Activations::Fp32})
      for (const auto& b : harness::backends()) {
        const RandomWeight source(WeightType::Int4, 16, 64, 32, 1);
        std::vector<float> x = random_floats(64, 2);
        x[37] = bad;
        for (const float y :
             run(*b, source, {WeightType::Int4, 16, 64, 1, 32, 1, true}, a, x, nullptr))
          ASSERT_FALSE(std::isfinite(y)) << b->describe() << " " << bad;
      }
}

TEST(Linear, RefusesBadShapesAndAliases) {
  Backend& b = *harness::backends()[0];
  const RandomWeight source(WeightType::Int4, 64, 64, 32, 1);
  const auto w = b.pack(source, 1);
  std::vector<float> x(64 * 64), y(64 * 64);
  const auto run_with = [&](const float* in, std::int64_t m, std::int64_t k, float* out,
                            std::int64_t ldy) {
    const LinearOutput o{w.get(), nullptr, out, ldy};
    b.linear({in, m, k, Activations::Int16, {&o, 1}});
  };
  run_with(x.data(), 2, 64, y.data(), 64);
  EXPECT_THROW(run_with(x.data(), 0, 64, y.data(), 64), Error);
  EXPECT_THROW(run_with(x.data(), 1, 32, y.data(), 64), Error);
  EXPECT_THROW(run_with(x.data(), 1, 64, y.data(), 63), Error);
  EXPECT_THROW(run_with(x.data(), 1, 64, x.data(), 64), Error);
  EXPECT_THROW(run_with(x.data(), 2, 64, x.data() + 100, 64), Error);
  EXPECT_THROW(run_with(nullptr, 1, 64, y.data(), 64), Error);
  EXPECT_THROW(plan_k(96, 64, 1), Error);
}

struct FusedCase {
  std::int64_t n, k, m;
  bool delta, unit_offset, swiglu;
};

void check_fused(const FusedCase& c, Activations a) {
  SCOPED_TRACE(fmt::format("{}x{} M {} delta {} offset {} swiglu {} {}", c.n, c.k, c.m, c.delta,
                           c.unit_offset, c.swiglu, activations_name(a)));
  const RandomWeight s0(WeightType::Int4, c.n, c.k, 32, 1), s1(WeightType::Int8, c.n, c.k, 32, 2);
  const auto count = static_cast<std::size_t>(c.m * c.k),
             outs = static_cast<std::size_t>(c.m * c.n);
  const std::vector<float> residual = random_floats(count, 3, 100),
                           delta = random_floats(count, 4, 30);
  std::vector<float> weight = random_floats(static_cast<std::size_t>(c.k), 5, 0.2f);
  for (float& g : weight) g += 1;
  std::vector<float> h0, u0, y0, z0;
  for (const auto& b : harness::backends()) {
    const auto w0 = b->pack(s0, 1), w1 = b->pack(s1, 1);
    Buffer r(*b, residual), d(*b, delta), g(*b, weight), h(*b, count), u(*b, count), y(*b, outs),
        z(*b, outs);
    const LinearOutput o[] = {{w0.get(), nullptr, y.data(), c.n},
                              {w1.get(), nullptr, z.data(), c.n}};
    const AddRmsNormLinearArgs args{.residual = r.data(),
                                    .delta = c.delta ? d.data() : nullptr,
                                    .weight = g.data(),
                                    .eps = 1e-6f,
                                    .unit_offset = c.unit_offset,
                                    .residual_out = h.data(),
                                    .normed = u.data(),
                                    .m = c.m,
                                    .k = c.k,
                                    .activations = a,
                                    .outputs = o,
                                    .epilogue = c.swiglu ? Epilogue::SwiGlu : Epilogue::None};
    b->add_rmsnorm_linear(args);
    ASSERT_TRUE(same_bits(r.copy(), residual)) << "an input was written";
    if (b == harness::backends()[0]) {
      h0 = h.copy(), u0 = u.copy(), y0 = y.copy(), z0 = z.copy();
      std::vector<double> hd(count), ud(count), want(outs), mag(outs), up(outs), up_mag(outs);
      add_rmsnorm_reference(args, hd.data(), ud.data());
      for (std::size_t i = 0; i < count; ++i) {
        ASSERT_NEAR(h0[i], hd[i], 1e-6 * std::fabs(hd[i]) + 1e-5);
        ASSERT_NEAR(u0[i], ud[i], 2e-6 * std::fabs(ud[i]) + 1e-6);
      }
      linear_reference(ud.data(), c.m, c.k, dequantise(s0, 0, c.n).data(), c.n, nullptr,
                       want.data(), mag.data());
      linear_reference(ud.data(), c.m, c.k, dequantise(s1, 0, c.n).data(), c.n, nullptr, up.data(),
                       up_mag.data());
      const double e = harness::bound(a, WeightType::Int4, c.k) + 4e-6;  // the norm's own rounding
      for (std::size_t i = 0; i < outs; ++i) {
        if (!c.swiglu) {
          ASSERT_LE(std::fabs(y0[i] - want[i]), e * mag[i]);
          ASSERT_LE(std::fabs(z0[i] - up[i]), e * up_mag[i]);
          continue;
        }
        const double silu = want[i] / (1 + std::exp(-want[i]));  // |silu'| <= 1.1
        ASSERT_LE(std::fabs(y0[i] - silu * up[i]),
                  e * (1.1 * mag[i] * std::fabs(up[i]) + std::fabs(silu) * up_mag[i]) +
                      1e-6 * std::fabs(silu * up[i]) + 1e-30);
      }
    }
    ASSERT_TRUE(same_bits(h.copy(), h0) && same_bits(u.copy(), u0) && same_bits(y.copy(), y0))
        << b->describe();
    if (!c.swiglu) {
      ASSERT_TRUE(same_bits(z.copy(), z0)) << b->describe();
    }
    // Fused against prepass + GEMV: the normed input, taken as the input of a plain linear.
    if (!c.swiglu) {
      Buffer y2(*b, outs);
      const LinearOutput plain{w0.get(), nullptr, y2.data(), c.n};
      b->linear({u.data(), c.m, c.k, a, {&plain, 1}});
      ASSERT_TRUE(same_bits(y2.copy(), y0)) << "prepass + GEMV, " << b->describe();
    }
  }
}

TEST(AddRmsNormLinear, FusedMatchesReferenceAndPrepass) {
  for (const Activations a : {Activations::Int16, Activations::Int8, Activations::Fp32})
    for (const bool delta : {true, false})
      for (const bool swiglu : {true, false})
        for (const std::int64_t m : {1, 3, 8, 13}) {
          check_fused({40, 576, m, delta, !delta, swiglu}, a);
          check_fused({17, 96, m, delta, delta, swiglu}, a);
        }
  for (const Activations a : {Activations::Int16, Activations::Fp32})
    check_fused({3, 62080, 2, true, true, false}, a);
}

// Fused: every thread prepares each row. Prepass: each row is prepared once, whatever M.
TEST(AddRmsNormLinear, PlanSaysWhoPreparesARow) {
  class Count final : public verify::Disturbance {
   public:
    void before(verify::Stage s) override { norms += s == verify::Stage::Norm; }
    std::atomic<int> norms{0};
  };
  cpu::CpuBackend b(3, verify::perturbed_kernels(cpu::best_isa()), true);
  const RandomWeight source(WeightType::Int4, 40, 64, 32, 1);
  const auto w = b.pack(source, 1);
  const auto norms = [&](Plan plan, std::int64_t m, bool output) {
    const std::vector<float> x = random_floats(static_cast<std::size_t>(m * 64), 1), g(64, 1.0f);
    Buffer y(b, static_cast<std::size_t>(m * 40)), u(b, x.size());
    const LinearOutput o{w.get(), nullptr, y.data(), 40};
    AddRmsNormLinearArgs a{
        .residual = x.data(), .weight = g.data(), .normed = u.data(), .m = m, .k = 64};
    if (output) a.outputs = {&o, 1};
    a.plan = plan;
    Count count;
    verify::set_disturbance(&count);
    b.add_rmsnorm_linear(a);
    verify::set_disturbance(nullptr);
    return count.norms.load();
  };
  EXPECT_EQ(norms(Plan::Fused, 2, true), 6);
  EXPECT_EQ(norms(Plan::Fused, 20, true), 60);
  EXPECT_EQ(norms(Plan::Prepass, 2, true), 2);
  EXPECT_EQ(norms(Plan::Prepass, 20, true), 20);
  for (const Plan p : {Plan::Auto, Plan::Fused, Plan::Prepass}) EXPECT_EQ(norms(p, 2, false), 2);
}

TEST(AddRmsNormLinear, WithoutOutputsItNeedsSomethingToWrite) {
  std::vector<float> x(64, 1.0f), g(64, 1.0f), out(64);
  const auto with = [&](float* h, float* u, std::int64_t m, std::int64_t k) {
    AddRmsNormLinearArgs a{
        .residual = x.data(), .weight = g.data(), .residual_out = h, .normed = u, .m = m, .k = k};
    check(a);
  };
  with(out.data(), nullptr, 1, 64);
  with(nullptr, out.data(), 1, 64);
  EXPECT_THROW(with(nullptr, nullptr, 1, 64), Error);
  EXPECT_THROW(with(out.data(), nullptr, 0, 64), Error);
  EXPECT_THROW(with(out.data(), nullptr, 1, 0), Error);
  EXPECT_THROW(with(x.data(), nullptr, 1, 64), Error);
  EXPECT_THROW(with(nullptr, g.data() + 1, 1, 64), Error);
}

TEST(AddRmsNormLinear, NothingOverflowsForLargeResiduals) {
  Backend& b = *harness::backends().back();
  const RandomWeight source(WeightType::Int4, 32, 5120, 128, 1);
  const auto w = b.pack(source, 1);
  const std::vector<float> residual = random_floats(5120, 3, 1e6f), weight(5120, 1.0f);
  Buffer y(b, 32);
  const LinearOutput o{w.get(), nullptr, y.data(), 32};
  b.add_rmsnorm_linear({.residual = residual.data(),
                        .weight = weight.data(),
                        .m = 1,
                        .k = 5120,
                        .outputs = {&o, 1}});
  for (const float v : y.copy()) EXPECT_TRUE(std::isfinite(v));
}

TEST(AddRmsNormLinear, RefusesTheInPlaceForm) {
  Backend& b = *harness::backends()[0];
  const RandomWeight source(WeightType::Int4, 32, 64, 32, 1);
  const auto w = b.pack(source, 1);
  std::vector<float> r(64, 1.0f), d(64, 1.0f), g(64, 1.0f), y(32);
  const LinearOutput o{w.get(), nullptr, y.data(), 32};
  const auto run_with = [&](float* residual_out, float* normed) {
    b.add_rmsnorm_linear({.residual = r.data(),
                          .delta = d.data(),
                          .weight = g.data(),
                          .residual_out = residual_out,
                          .normed = normed,
                          .m = 1,
                          .k = 64,
                          .outputs = {&o, 1}});
  };
  EXPECT_THROW(run_with(r.data(), nullptr), Error);
  EXPECT_THROW(run_with(d.data(), nullptr), Error);
  EXPECT_THROW(run_with(nullptr, r.data()), Error);
  EXPECT_THROW(run_with(nullptr, y.data()), Error);
}

}  // namespace
}  // namespace nibble
