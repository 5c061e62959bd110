// router and experts against their references; equal bits over instruction sets, threads, the
// number of tokens and their company.
#include <algorithm>

#include "harness.h"
#include "ops/experts.h"
#include "ops/pieces.h"
#include "ops/router.h"

namespace nibble {
namespace {

using harness::Buffer;
using harness::random_floats;
using harness::RandomWeight;
using harness::same_bits;
using harness::size;

struct Case {
  WeightType type;
  std::int64_t m, k, experts, top_k, width, shared_width;
  int group;
  bool alike = false;  // the shared expert's weights are of the others' type
};

struct Routed {
  std::vector<float> h, u, logits, shared, weights;
  std::vector<std::int32_t> ids;
};

class MoeTest : public testing::TestWithParam<Case> {
 protected:
  const Case c = GetParam();
  const RandomWeight router{c.type, c.experts, c.k, c.group, 1}, score{c.type, 1, c.k, c.group, 2};
  // Stacks: experts * rows.
  const RandomWeight gate{c.type, c.experts*c.width, c.k, c.group, 3},
      up{c.type, c.experts*c.width, c.k, c.group, 4},
      down{c.type, c.experts*c.k, c.width, c.group, 5};
  const WeightType shared = c.alike ? c.type : WeightType::BF16;
  const int shared_group = c.alike ? c.group : 0;
  const RandomWeight shared_gate{shared, c.shared_width, c.k, shared_group, 6},
      shared_up{shared, c.shared_width, c.k, shared_group, 7},
      shared_down{c.type, c.k, c.shared_width, c.group, 8};
  const std::vector<float> residual = random_floats(size(c.m * c.k), 11),
                           delta = random_floats(size(c.m * c.k), 12),
                           norm = random_floats(size(c.k), 13, 0.1f);

  // Tokens [first, first + m).
  Routed route(Backend& b, Activations act, std::int64_t first, std::int64_t m) const {
    const auto w = b.pack(router, 1), s = b.pack(score, 1);
    const auto cut = [&](const std::vector<float>& x) {
      return std::vector<float>(x.begin() + first * c.k, x.begin() + (first + m) * c.k);
    };
    Buffer r(b, cut(residual)), d(b, cut(delta)), n(b, norm), h(b, size(m * c.k)),
        u(b, size(m * c.k)), logits(b, size(m * c.experts)), shared(b, size(m)),
        weights(b, size(m * c.top_k)), ids(b, size(m * c.top_k));
    b.router({.residual = r.data(),
              .delta = d.data(),
              .weight = n.data(),
              .unit_offset = true,
              .residual_out = h.data(),
              .normed = u.data(),
              .m = m,
              .k = c.k,
              .activations = act,
              .router = w.get(),
              .shared_gate = s.get(),
              .top_k = c.top_k,
              .logits = logits.data(),
              .shared = shared.data(),
              .ids = reinterpret_cast<std::int32_t*>(ids.data()),
              .weights = weights.data()});
    Routed out{h.copy(), u.copy(), logits.copy(), shared.copy(), weights.copy(), {}};
    out.ids.resize(size(m * c.top_k));
    std::memcpy(out.ids.data(), ids.copy().data(), out.ids.size() * sizeof(std::int32_t));
    return out;
  }

  // Tokens [first, first + m) of x, with the routing of all.
  std::vector<float> mix(Backend& b, Activations act, const std::vector<float>& x, const Routed& r,
                         std::int64_t first, std::int64_t m) const {
    const auto g = b.pack(gate, 1, c.experts), u = b.pack(up, 1, c.experts),
               d = b.pack(down, kRowParallelPieces, c.experts);
    const auto sg = b.pack(shared_gate, 1), su = b.pack(shared_up, 1),
               sd = b.pack(shared_down, kRowParallelPieces);
    const auto cut = [&](const auto& v, std::int64_t width) {
      return Buffer(b,
                    std::vector<float>(v.begin() + first * width, v.begin() + (first + m) * width));
    };
    std::vector<float> id_bits(r.ids.size());
    std::memcpy(id_bits.data(), r.ids.data(), r.ids.size() * sizeof(std::int32_t));
    Buffer in = cut(x, c.k), ids = cut(id_bits, c.top_k), weights = cut(r.weights, c.top_k),
           shared = cut(r.shared, 1), y(b, size(m * c.k));
    b.experts({.x = in.data(),
               .ids = reinterpret_cast<const std::int32_t*>(ids.data()),
               .weights = weights.data(),
               .shared = shared.data(),
               .m = m,
               .k = c.k,
               .top_k = c.top_k,
               .activations = act,
               .gate = g.get(),
               .up = u.get(),
               .down = d.get(),
               .shared_gate = sg.get(),
               .shared_up = su.get(),
               .shared_down = sd.get(),
               .y = y.data()});
    return y.copy();
  }

  // y of all tokens is the reference's, within the bound.
  void expect_close(const std::vector<float>& y, const Routed& r, Activations act) const {
    const std::vector<float> g = dequantise(gate, 0, c.experts * c.width),
                             up_w = dequantise(up, 0, c.experts * c.width),
                             d = dequantise(down, 0, c.experts * c.k);
    for (std::int64_t t = 0; t < c.m; ++t) {
      const std::vector<double> x(r.u.begin() + t * c.k, r.u.begin() + (t + 1) * c.k);
      std::vector<double> want(size(c.k)), unit(size(c.k));
      for (std::int64_t s = 0; s < c.top_k; ++s) {
        const std::int64_t e = r.ids[size(t * c.top_k + s)], at = e * c.width * c.k;
        expert_reference(x.data(), c.k, g.data() + at, up_w.data() + at, d.data() + at, c.width,
                         r.weights[size(t * c.top_k + s)], want.data(), unit.data());
      }
      expert_reference(x.data(), c.k, dequantise(shared_gate, 0, c.shared_width).data(),
                       dequantise(shared_up, 0, c.shared_width).data(),
                       dequantise(shared_down, 0, c.k).data(), c.shared_width,
                       1 / (1 + std::exp(-static_cast<double>(r.shared[size(t)]))), want.data(),
                       unit.data());
      for (std::int64_t i = 0; i < c.k; ++i)
        ASSERT_LE(std::fabs(y[size(t * c.k + i)] - want[size(i)]),
                  harness::bound(act, c.type, c.k) * unit[size(i)])
            << activations_name(act) << " token " << t << " output " << i;
    }
  }
};

TEST_P(MoeTest, MatchesReferenceAndBitsAgree) {
  const auto& all = harness::backends();
  for (const Activations act : {Activations::Fp32, Activations::Int16, Activations::Int8}) {
    const Routed r = route(*all[0], act, 0, c.m);
    std::vector<double> h(size(c.m * c.k)), u(h.size());
    add_rmsnorm_reference({.residual = residual.data(),
                           .delta = delta.data(),
                           .weight = norm.data(),
                           .unit_offset = true,
                           .m = c.m,
                           .k = c.k},
                          h.data(), u.data());
    std::vector<double> logits(size(c.m * c.experts)), magnitude(logits.size());
    linear_reference(u.data(), c.m, c.k, dequantise(router, 0, c.experts).data(), c.experts,
                     nullptr, logits.data(), magnitude.data());
    for (std::size_t i = 0; i < logits.size(); ++i)
      ASSERT_LE(std::fabs(r.logits[i] - logits[i]),
                harness::bound(act, c.type, c.k) * magnitude[i]);
    for (std::int64_t t = 0; t < c.m; ++t) {
      std::vector<std::int32_t> ids(size(c.top_k));
      std::vector<double> weights(ids.size());
      top_k_reference(r.logits.data() + t * c.experts, c.experts, c.top_k, ids.data(),
                      weights.data());
      for (std::int64_t s = 0; s < c.top_k; ++s) {
        ASSERT_EQ(r.ids[size(t * c.top_k + s)], ids[size(s)]) << "token " << t;
        ASSERT_NEAR(r.weights[size(t * c.top_k + s)], weights[size(s)], 1e-6);
      }
    }

    const std::vector<float> y = mix(*all[0], act, r.u, r, 0, c.m);
    expect_close(y, r, act);

    for (const auto& b : all) {
      const Routed again = route(*b, act, 0, c.m);
      ASSERT_TRUE(same_bits(again.h, r.h) && same_bits(again.u, r.u) &&
                  same_bits(again.logits, r.logits) && same_bits(again.shared, r.shared) &&
                  same_bits(again.weights, r.weights) && again.ids == r.ids)
          << b->describe();
      ASSERT_TRUE(same_bits(mix(*b, act, r.u, r, 0, c.m), y)) << b->describe();
    }
    for (std::int64_t t = 0; t < c.m; t += 1 + c.m / 4) {  // a token alone
      const Routed alone = route(*all.back(), act, t, 1);
      ASSERT_TRUE(std::equal(alone.ids.begin(), alone.ids.end(), r.ids.begin() + t * c.top_k));
      const std::vector<float> yt(y.begin() + t * c.k, y.begin() + (t + 1) * c.k);
      ASSERT_TRUE(same_bits(mix(*all.back(), act, r.u, r, t, 1), yt)) << "token " << t;
    }
  }
}

class MoeHalfTest : public MoeTest {};

TEST_P(MoeHalfTest, MatchesReference) {
  const auto& all = harness::backends();
  for (const auto& b : all) {
    if (!b->has_half()) continue;
    const Routed r = route(*b, Activations::Half, 0, c.m),
                 exact = route(*all[0], Activations::Int16, 0, c.m);
    ASSERT_TRUE(same_bits(r.logits, exact.logits) && r.ids == exact.ids) << b->describe();
    const std::vector<float> y = mix(*b, Activations::Half, r.u, r, 0, c.m);
    expect_close(y, r, Activations::Half);
    ASSERT_FALSE(same_bits(y, mix(*b, Activations::Int16, r.u, r, 0, c.m))) << "not in fp16";
    for (std::int64_t t = 0; t < c.m; t += 1 + c.m / 4) {  // a token alone
      const std::vector<float> yt(y.begin() + t * c.k, y.begin() + (t + 1) * c.k);
      ASSERT_TRUE(same_bits(mix(*b, Activations::Half, r.u, r, t, 1), yt)) << "token " << t;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, MoeTest,
                         testing::Values(Case{WeightType::Int4, 1, 128, 8, 3, 128, 128, 128},
                                         Case{WeightType::Int4, 13, 256, 5, 2, 96, 160, 32},
                                         Case{WeightType::Int4, 8, 96, 3, 3, 40 * 8, 64, 32},
                                         Case{WeightType::Int4Aff, 6, 128, 17, 1, 64, 32, 32},
                                         Case{WeightType::Int8, 3, 64, 4, 2, 256, 64, 32},
                                         Case{WeightType::BF16, 9, 72, 11, 4, 37, 21, 0},
                                         // The shared expert as one more.
                                         Case{WeightType::Int4, 1, 256, 6, 2, 512, 512, 128, true},
                                         Case{WeightType::Int4, 3, 512, 6, 2, 512, 512, 128, true},
                                         Case{WeightType::Int4, 8, 256, 6, 3, 512, 512, 64, true},
                                         Case{WeightType::Int4, 5, 160, 7, 4, 1024, 1024, 32, true},
                                         // Logits of many blocks, of which one chooses.
                                         Case{WeightType::Int4, 5, 128, 300, 11, 64, 64, 64},
                                         // Many tokens of an expert, as gemm takes them.
                                         Case{WeightType::Int4, 20, 256, 5, 2, 512, 512, 128},
                                         Case{WeightType::Int8, 11, 128, 4, 2, 128, 64, 64},
                                         Case{WeightType::Int4, 70, 128, 2, 2, 64, 128, 64},
                                         // The router's choice beside its products in fp32.
                                         Case{WeightType::F32, 3, 128, 40, 4, 64, 64, 0},
                                         Case{WeightType::BF16, 1, 256, 70, 8, 64, 64, 0},
                                         // Two groups a stage.
                                         Case{WeightType::Int4, 1, 256, 6, 2, 512, 512, 32, true},
                                         Case{WeightType::Int4, 4, 256, 6, 2, 512, 512, 32, true},
                                         Case{WeightType::Int4, 8, 256, 6, 3, 512, 512, 32, true}));

// Up to 16, 32 and 64 pairs of an expert, and more.
INSTANTIATE_TEST_SUITE_P(All, MoeHalfTest,
                         testing::Values(Case{WeightType::Int4, 1, 256, 6, 2, 512, 512, 128, true},
                                         Case{WeightType::Int4, 20, 256, 5, 2, 512, 512, 64, true},
                                         Case{WeightType::Int4, 24, 512, 2, 2, 512, 512, 128, true},
                                         Case{WeightType::Int4, 70, 256, 2, 2, 512, 512, 32,
                                              true}));

// Equal logits: the lowest index first. NaN: ids stay in range and apart.
TEST(Router, TiesAndNaN) {
  for (const auto& b : harness::backends()) {
    const std::int64_t k = 32, experts = 40;
    class Rows final : public WeightSource {
     public:
      explicit Rows(std::vector<float> v)
          : WeightSource("rows", {WeightType::F32, static_cast<std::int64_t>(v.size()), 32}),
            v_(std::move(v)) {}
      void read(std::int64_t row, std::int64_t count, WeightRows& out) const override {
        out.values.clear();
        for (std::int64_t r = row; r < row + count; ++r)
          out.values.insert(out.values.end(), 32, v_[static_cast<std::size_t>(r)]);
      }

     private:
      std::vector<float> v_;
    };
    std::vector<float> value(static_cast<std::size_t>(experts), 0.5f);
    value[7] = value[30] = 1, value[0] = -1;
    const auto w = b->pack(Rows(value), 1), s = b->pack(Rows({1.0f}), 1);
    std::vector<float> values(32, 1.0f);
    Buffer norm(*b, values), u(*b, 32), logits(*b, 40), shared(*b, 1), weights(*b, 5), to(*b, 5);
    const auto run = [&] {
      Buffer x(*b, values);
      b->router({.residual = x.data(),
                 .weight = norm.data(),
                 .normed = u.data(),
                 .m = 1,
                 .k = k,
                 .router = w.get(),
                 .shared_gate = s.get(),
                 .top_k = 5,
                 .logits = logits.data(),
                 .shared = shared.data(),
                 .ids = reinterpret_cast<std::int32_t*>(to.data()),
                 .weights = weights.data()});
      std::vector<std::int32_t> ids(5);
      std::memcpy(ids.data(), to.copy().data(), 5 * sizeof(std::int32_t));
      return ids;
    };
    EXPECT_EQ(run(), (std::vector<std::int32_t>{7, 30, 1, 2, 3})) << b->describe();
    Buffer x(*b, values);
    EXPECT_THROW(b->router({.residual = x.data(),
                            .weight = norm.data(),
                            .normed = u.data(),
                            .m = 1,
                            .k = k,
                            .router = w.get(),
                            .shared_gate = s.get(),
                            .top_k = 5,
                            .logits = logits.data(),
                            .shared = shared.data(),
                            .ids = reinterpret_cast<std::int32_t*>(to.data()),
                            .weights = logits.data() + 3}),
                 Error);  // an alias
    values[3] = NAN;
    std::vector<std::int32_t> ids = run();
    std::sort(ids.begin(), ids.end());
    EXPECT_EQ(std::unique(ids.begin(), ids.end()), ids.end());
    EXPECT_TRUE(ids.front() >= 0 && ids.back() < experts);
  }
}

TEST(Experts, RefusesBadArguments) {
  Backend& b = *harness::backends()[0];
  const RandomWeight in(WeightType::Int4, 2 * 32, 64, 32, 1),
      out(WeightType::Int4, 2 * 64, 32, 32, 2), one(WeightType::Int4, 32, 64, 32, 3),
      back(WeightType::Int4, 64, 32, 32, 4);
  const auto gate = b.pack(in, 1, 2), down = b.pack(out, 8, 2), flat = b.pack(out, 1, 2);
  const auto sg = b.pack(one, 1), sd = b.pack(back, 8);
  std::vector<float> x(64, 1.0f), y(64), weights(2, 0.5f), shared(1);
  std::vector<std::int32_t> ids = {0, 1};
  ExpertsArgs good{.x = x.data(),
                   .ids = ids.data(),
                   .weights = weights.data(),
                   .shared = shared.data(),
                   .m = 1,
                   .k = 64,
                   .top_k = 2,
                   .gate = gate.get(),
                   .up = gate.get(),
                   .down = down.get(),
                   .shared_gate = sg.get(),
                   .shared_up = sg.get(),
                   .shared_down = sd.get(),
                   .y = y.data()};
  b.experts(good);
  const auto refuses = [&](auto&& change) {
    ExpertsArgs a = good;
    change(a);
    EXPECT_THROW(b.experts(a), Error);
  };
  refuses([&](ExpertsArgs& a) { a.y = x.data(); });
  refuses([&](ExpertsArgs& a) { a.down = flat.get(); });  // not in pieces
  refuses([&](ExpertsArgs& a) { a.down = gate.get(); });
  refuses([&](ExpertsArgs& a) { a.top_k = 3; });
  refuses([&](ExpertsArgs& a) { a.shared_gate = gate.get(); });
  refuses([&](ExpertsArgs& a) { a.weights = nullptr; });
  ids[1] = 2;
  EXPECT_THROW(b.experts(good), Error);
  // One matrix an operation: a stack is for experts.
  const LinearOutput o{gate.get(), nullptr, y.data(), 64};
  EXPECT_THROW(b.linear({x.data(), 1, 64, Activations::Int16, {&o, 1}}), Error);
}

}  // namespace
}  // namespace nibble
