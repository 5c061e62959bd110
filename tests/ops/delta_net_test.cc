// causal_conv and delta_rule against their references; the recurrence against its chunked form;
// equal bits over instruction sets, threads, splits of the rows and slots.
// equal bits over instruction sets, threads, splits of the rows and slots.
#include "ops/delta_net.h"

#include <algorithm>

#include "harness.h"

namespace nibble {
namespace {

using harness::Buffer;
using harness::random_floats;
using harness::same_bits;
using harness::size;

struct Case {
  std::int64_t key_heads, value_heads, key_dim, value_dim, kernel, length;
};

DeltaShape shape_of(const Case& c, std::int64_t slots) {
  return {.layers = 2,
          .slots = slots,
          .key_heads = c.key_heads,
          .value_heads = c.value_heads,
          .key_dim = c.key_dim,
          .value_dim = c.value_dim,
          .conv_kernel = c.kernel};
}

// One sequence's inputs, from its start.
struct Inputs {
  std::vector<float> u, a, b, taps, a_log, dt_bias;
  explicit Inputs(const Case& c, unsigned seed = 0)
      : u(random_floats(size(c.length * shape_of(c, 1).channels()), seed + 1)),
        a(random_floats(size(c.length * c.value_heads), seed + 2, 3)),
        b(random_floats(size(c.length * c.value_heads), seed + 3, 2)),
        taps(random_floats(size(c.kernel * shape_of(c, 1).channels()), 4)),
        a_log(random_floats(size(c.value_heads), 5)),
        dt_bias(random_floats(size(c.value_heads), 6)) {}
};

struct Result {
  std::vector<float> convolved, out, state;
};

// Rows [p, p + m) of every given sequence in one step; returns each sequence's results appended.
void step(Backend& b, DeltaState& state, const std::vector<const Inputs*>& of,
          const std::vector<std::int32_t>& slots, std::int64_t p, std::int64_t m,
          std::vector<Result>& results, Activations activations = Activations::Int16) {
  const DeltaShape& s = state.shape();
  std::vector<float> u, a, beta;
  std::vector<RowPlace> rows;
  for (std::size_t i = 0; i < of.size(); ++i) {
    const auto append = [&](std::vector<float>& to, const std::vector<float>& from,
                            std::int64_t w) {
      to.insert(to.end(), from.begin() + p * w, from.begin() + (p + m) * w);
    };
    append(u, of[i]->u, s.channels());
    append(a, of[i]->a, s.value_heads), append(beta, of[i]->b, s.value_heads);
    for (std::int64_t r = 0; r < m; ++r)
      rows.push_back({slots[i], static_cast<std::int32_t>(p + r)});
  }
  const auto all = static_cast<std::int64_t>(rows.size());
  Buffer ui(b, u), ai(b, a), bi(b, beta), wi(b, of[0]->taps), rate(b, of[0]->a_log),
      bias(b, of[0]->dt_bias), y(b, size(all * s.channels())), out(b, size(all * s.value_width()));
  b.causal_conv({ui.data(), wi.data(), all, rows.data(), &state, 1, y.data()});
  b.delta_rule({.qkv = y.data(),
                .a = ai.data(),
                .b = bi.data(),
                .a_log = rate.data(),
                .dt_bias = bias.data(),
                .m = all,
                .rows = rows.data(),
                .state = &state,
                .layer = 1,
                .out = out.data(),
                .activations = activations});
  const std::vector<float> convolved = y.copy(), o = out.copy();
  for (std::size_t i = 0; i < of.size(); ++i) {
    const auto part = [&](const std::vector<float>& x, std::int64_t w, std::vector<float>& to) {
      const auto from = x.begin() + static_cast<std::int64_t>(i) * m * w;
      to.insert(to.end(), from, from + m * w);
    };
    part(convolved, s.channels(), results[i].convolved);
    part(o, s.value_width(), results[i].out);
  }
}

Result feed(Backend& b, const Case& c, const Inputs& in, std::int64_t chunk, std::int32_t slot,
            Activations activations = Activations::Int16) {
  const auto state = b.make_delta_state(shape_of(c, 3));
  std::vector<Result> r(1);
  for (std::int64_t p = 0; p < c.length; p += chunk)
    step(b, *state, {&in}, {slot}, p, std::min(chunk, c.length - p), r, activations);
  for (std::int64_t h = 0; h < c.value_heads; ++h) {
    std::vector<float> s(size(c.key_dim * c.value_dim));
    state->read(1, slot, h, s.data());
    r[0].state.insert(r[0].state.end(), s.begin(), s.end());
  }
  return r[0];
}

bool same(const Result& a, const Result& b) {
  return same_bits(a.convolved, b.convolved) && same_bits(a.out, b.out) &&
         same_bits(a.state, b.state);
}

// The head's inputs in double, from convolved values.
struct Head {
  std::vector<double> q, k, v, a, b;
  DeltaHead args;
  Head(const Case& c, const Inputs& in, const std::vector<float>& convolved, std::int64_t h) {
    const std::int64_t channels = shape_of(c, 1).channels(), kw = c.key_heads * c.key_dim,
                       key = h / (c.value_heads / c.key_heads) * c.key_dim;
    for (std::int64_t t = 0; t < c.length; ++t) {
      const float* row = convolved.data() + t * channels;
      q.insert(q.end(), row + key, row + key + c.key_dim);
      k.insert(k.end(), row + kw + key, row + kw + key + c.key_dim);
      v.insert(v.end(), row + 2 * kw + h * c.value_dim, row + 2 * kw + (h + 1) * c.value_dim);
      a.push_back(in.a[size(t * c.value_heads + h)]);
      b.push_back(in.b[size(t * c.value_heads + h)]);
    }
    args = {c.length, c.key_dim, c.value_dim, q.data(),          k.data(),
            v.data(), a.data(),  b.data(),    in.a_log[size(h)], in.dt_bias[size(h)],
            1e-6};
  }
};

// 1e-5 of the head's largest, outputs and state; returns the largest output.
double expect_near(const Case& c, const Result& r, std::int64_t h, const std::vector<double>& s,
                   const std::vector<double>& want) {
  double largest = 0, deepest = 0;
  for (const double x : want) largest = std::max(largest, std::fabs(x));
  for (const double x : s) deepest = std::max(deepest, std::fabs(x));
  for (std::int64_t t = 0; t < c.length; ++t)
    for (std::int64_t j = 0; j < c.value_dim; ++j)
      EXPECT_NEAR(r.out[size((t * c.value_heads + h) * c.value_dim + j)],
                  want[size(t * c.value_dim + j)], 1e-5 * largest)
          << "head " << h << " token " << t;
  for (std::size_t i = 0; i < s.size(); ++i)
    EXPECT_NEAR(r.state[size(h) * s.size() + i], s[i], 1e-5 * deepest) << "head " << h;
  return largest;
}

class DeltaNetTest : public testing::TestWithParam<Case> {};

TEST_P(DeltaNetTest, MatchesReferenceAndBitsAgree) {
  const Case c = GetParam();
  const Inputs in(c);
  const auto& all = harness::backends();
  const Result r = feed(*all[0], c, in, c.length, 0);

  const std::int64_t channels = shape_of(c, 1).channels();
  for (std::int64_t ch = 0; ch < channels; ++ch) {
    std::vector<float> u, taps;
    for (std::int64_t t = 0; t < c.length; ++t) u.push_back(in.u[size(t * channels + ch)]);
    for (std::int64_t i = 0; i < c.kernel; ++i) taps.push_back(in.taps[size(i * channels + ch)]);
    std::vector<double> want(u.size());
    causal_conv_reference(u.data(), c.length, taps.data(), c.kernel, want.data());
    for (std::int64_t t = 0; t < c.length; ++t)
      ASSERT_NEAR(r.convolved[size(t * channels + ch)], want[size(t)],
                  1e-5 * (1 + std::fabs(want[size(t)])));
  }
  for (std::int64_t h = 0; h < c.value_heads; ++h) {
    const Head head(c, in, r.convolved, h);
    std::vector<double> s(size(c.key_dim * c.value_dim)), want(size(c.length * c.value_dim));
    delta_rule_reference(head.args, s.data(), want.data());
    const double largest = expect_near(c, r, h, s, want);
    // Chunks of any size, ragged tails and a split in two calls give the recurrence.
    for (const std::int64_t chunk : {1, 4, 8, 64}) {
      std::vector<double> s2(s.size()), got(want.size());
      DeltaHead first = head.args;
      first.n = c.length / 3;
      delta_rule_chunked_reference(first, chunk, s2.data(), got.data());
      DeltaHead rest = head.args;
      rest.n -= first.n, rest.q += first.n * c.key_dim, rest.k += first.n * c.key_dim;
      rest.v += first.n * c.value_dim, rest.a += first.n, rest.b += first.n;
      delta_rule_chunked_reference(rest, chunk, s2.data(), got.data() + first.n * c.value_dim);
      for (std::size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(got[i], want[i], 1e-12 * largest) << "chunk " << chunk;
    }
  }

  for (const auto& b : all) ASSERT_TRUE(same(feed(*b, c, in, c.length, 0), r)) << b->describe();
  for (const std::int64_t chunk : {1, 2, 3, 7, 64})  // any cut of the rows, any slot
    for (Backend* b : harness::last_two())
      ASSERT_TRUE(same(feed(*b, c, in, chunk, 2), r)) << b->describe() << " " << chunk;
}

INSTANTIATE_TEST_SUITE_P(All, DeltaNetTest,
                         testing::Values(Case{1, 1, 16, 16, 4, 40}, Case{2, 4, 32, 32, 4, 70},
                                         Case{1, 3, 128, 128, 4, 130}, Case{2, 6, 64, 48, 2, 33},
                                         Case{3, 3, 20, 24, 1, 9}, Case{1, 2, 7, 13, 5, 65},
                                         Case{16, 32, 8, 8, 4, 5}));

// Activations::Half: a CUDA device's own order of sums; the emulator's, and a device's, where there
// is one.
const std::vector<std::unique_ptr<Backend>>& cuda_backends() {
  static const auto all = [] {
    auto v = emulated_backends();
    try {
      v.push_back(cuda::make(1));
    } catch (const Error&) {
    }
    return v;
  }();
  return all;
}

class DeltaNetHalfTest : public testing::TestWithParam<Case> {};

TEST_P(DeltaNetHalfTest, MatchesReferenceAndBitsAgree) {
  const Case c = GetParam();
  const Inputs in(c);
  Result r;
  for (const auto& b : cuda_backends()) {
    const Result now = feed(*b, c, in, c.length, 0, Activations::Half);
    if (r.out.empty()) {
      r = now;
      for (std::int64_t h = 0; h < c.value_heads; ++h) {
        std::vector<double> s(size(c.key_dim * c.value_dim)), want(size(c.length * c.value_dim));
        delta_rule_reference(Head(c, in, r.convolved, h).args, s.data(), want.data());
        expect_near(c, r, h, s, want);
        if (HasFailure()) return;
      }
      // It is another order of sums, where there is one.
      ASSERT_EQ(same_bits(r.out, feed(*b, c, in, c.length, 0).out), c.key_dim != 128);
    }
    ASSERT_TRUE(same(now, r)) << b->describe();
    for (const std::int64_t chunk : {8, 64, 128})
      ASSERT_TRUE(same(feed(*b, c, in, chunk, 2, Activations::Half), r)) << b->describe() << chunk;
    for (const std::int64_t length : {1, 5, 8, 9, 30}) {  // rows need none of those that follow
      Case less = c;
      less.length = std::min(length, c.length);
      const std::vector<float> out = feed(*b, less, in, less.length, 1, Activations::Half).out;
      ASSERT_TRUE(same_bits(out, {r.out.begin(), r.out.begin() + std::ssize(out)})) << length;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, DeltaNetHalfTest,
                         testing::Values(Case{1, 3, 128, 128, 4, 203}, Case{2, 2, 128, 48, 4, 75},
                                         Case{5, 5, 128, 13, 2, 40}, Case{1, 12, 128, 20, 4, 17},
                                         Case{2, 4, 32, 24, 4, 33}));

// Many rows of sequences that begin and end anywhere, also within a few rows of each other.
TEST(DeltaNet, ConvolutionOfManyRowsHasTheSameBits) {
  const Case c{1, 1, 16, 270, 4, 1};
  const std::int64_t channels = shape_of(c, 1).channels();
  const Inputs taps(c);
  const std::vector<std::vector<std::int64_t>> steps = {{15, 1, 2, 16, 3, 12, 47, 1, 1, 30},
                                                        {1, 14, 3, 1, 2, 13, 5, 25, 2, 18},
                                                        {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}};
  std::vector<std::vector<float>> want;
  for (const auto& b : harness::backends()) {
    const auto state = b->make_delta_state(shape_of(c, 10));
    std::vector<std::int32_t> position(10);
    for (std::size_t i = 0; i < steps.size(); ++i) {
      std::vector<RowPlace> rows;
      for (std::size_t s = 0; s < steps[i].size(); ++s)
        for (std::int64_t r = 0; r < steps[i][s]; ++r)
          rows.push_back({static_cast<std::int32_t>(9 - s), position[s]++});
      const std::int64_t m = std::ssize(rows);
      Buffer u(*b, random_floats(size(m * channels), 7 + static_cast<unsigned>(i))),
          w(*b, taps.taps), y(*b, size(m * channels));
      b->causal_conv({u.data(), w.data(), m, rows.data(), state.get(), 1, y.data()});
      if (want.size() == i) want.push_back(y.copy());
      ASSERT_TRUE(same_bits(y.copy(), want[i])) << b->describe() << " step " << i;
    }
  }
}

// Half: each of several sequences as alone, cut elsewhere, from any position; in steps of few rows,
// which take their sequences from the rows, and of many.
TEST(DeltaNet, HalfIsTheSameInCompany) {
  const Case c{2, 4, 128, 24, 4, 150};
  std::vector<Inputs> in;
  for (unsigned i = 0; i < 10; ++i) in.emplace_back(c, 10 * i);
  std::vector<const Inputs*> of;
  std::vector<std::int32_t> slots;
  for (const Inputs& i : in)
    of.push_back(&i), slots.push_back(10 - static_cast<std::int32_t>(of.size()));
  const auto run = [&](Backend& b, const std::vector<const Inputs*>& inputs,
                       const std::vector<std::int32_t>& at, std::vector<std::int64_t> steps) {
    const auto state = b.make_delta_state(shape_of(c, 10));
    std::vector<Result> r(inputs.size());
    step(b, *state, std::vector(inputs.size(), of[inputs.size() - 1]), at, 0, 20, r,
         Activations::Half);  // position 0 forgets
    r = std::vector<Result>(inputs.size());
    std::int64_t p = 0;
    for (const std::int64_t m : steps)
      step(b, *state, inputs, at, p, m, r, Activations::Half), p += m;
    return r;
  };
  for (const auto& b : cuda_backends()) {
    const std::vector<Result> all = run(*b, of, slots, {3, 125, 22});
    for (const std::size_t i : {0, 7, 8, 9}) {
      const Result alone = run(*b, {of[i]}, {5}, {3, 61, 64, 22})[0];
      EXPECT_TRUE(same_bits(alone.out, all[i].out)) << b->describe() << " " << i;
    }
    const std::vector<Result> few = run(*b, {of[3], of[4]}, {2, 7}, {3, 4, 1});
    for (const std::size_t i : {0, 1})
      EXPECT_TRUE(same_bits(run(*b, {of[3 + i]}, {1}, {3, 4, 1})[0].out, few[i].out))
          << b->describe() << " " << i;
  }
}

// Several sequences in a step: each as alone.
TEST(DeltaNet, ASequenceIsTheSameInCompany) {
  const Case c{2, 4, 32, 24, 4, 24};
  const Inputs x(c, 10), y(c, 20), z(c, 30);
  for (const auto& b : harness::backends()) {
    const auto state = b->make_delta_state(shape_of(c, 5));
    std::vector<Result> together(3);
    for (std::int64_t p = 0; p < c.length; p += 6)
      step(*b, *state, {&x, &y, &z}, {4, 0, 2}, p, 6, together);
    const Inputs* const inputs[] = {&x, &y, &z};
    for (std::size_t i = 0; i < 3; ++i) {
      const Result alone = feed(*harness::backends()[0], c, *inputs[i], 1, 1);
      EXPECT_TRUE(same_bits(alone.out, together[i].out) &&
                  same_bits(alone.convolved, together[i].convolved))
          << b->describe();
    }
  }
}

// A slot needs no clearing: position 0 starts anew, after NaN too; and a copy is the same slot.
TEST(DeltaNet, StartsAnewAndCopies) {
  const Case c{1, 2, 16, 16, 4, 12};
  const Inputs good(c);
  Inputs bad(c);
  std::fill(bad.u.begin(), bad.u.end(), NAN);
  for (const auto& b : harness::backends()) {
    const auto state = b->make_delta_state(shape_of(c, 2));
    std::vector<Result> poisoned(1), r(1), copied(1);
    step(*b, *state, {&bad}, {1}, 0, 12, poisoned);
    EXPECT_TRUE(std::isnan(poisoned[0].out[0]));
    step(*b, *state, {&good}, {1}, 0, 12, r);
    EXPECT_TRUE(same_bits(r[0].out, feed(*b, c, good, 12, 0).out)) << b->describe();
    std::vector<Result> half(1);
    step(*b, *state, {&good}, {0}, 0, 7, half);
    state->copy(0, 1);
    step(*b, *state, {&good}, {1}, 7, 5, copied);
    const std::vector<float> tail(r[0].out.end() - 5 * 32, r[0].out.end());
    EXPECT_TRUE(same_bits(copied[0].out, tail));
  }
}

// Extreme gates: no NaN, no overflow (defect class 13).
TEST(DeltaNet, ExtremeGatesStayFinite) {
  const Case c{1, 1, 16, 16, 4, 8};
  for (const float x : {-1e30f, -200.0f, 200.0f, 1e30f}) {
    Inputs in(c);
    std::fill(in.a.begin(), in.a.end(), x), std::fill(in.b.begin(), in.b.end(), x);
    for (float& u : in.u) u *= 1e6f;
    for (const float v : feed(*harness::backends().back(), c, in, 3, 0).out)
      ASSERT_TRUE(std::isfinite(v)) << x;
  }
}

TEST(DeltaNet, RefusesBadArguments) {
  Backend& b = *harness::backends()[0];
  const Case c{1, 2, 16, 16, 4, 4};
  const auto state = b.make_delta_state(shape_of(c, 2));
  std::vector<float> u(4 * 64), y(4 * 64), w(4 * 64), gates(8), o(4 * 32);
  const auto conv = [&](std::vector<RowPlace> rows, float* out, std::int64_t layer = 0) {
    b.causal_conv({u.data(), w.data(), static_cast<std::int64_t>(rows.size()), rows.data(),
                   state.get(), layer, out});
  };
  conv({{0, 0}, {0, 1}, {1, 7}}, y.data());
  EXPECT_THROW(conv({{0, 0}, {0, 2}}, y.data()), Error);          // a gap
  EXPECT_THROW(conv({{0, 0}, {1, 0}, {0, 1}}, y.data()), Error);  // apart
  EXPECT_THROW(conv({{2, 0}}, y.data()), Error);                  // no such slot
  EXPECT_THROW(conv({{-1, 0}}, y.data()), Error);
  EXPECT_THROW(conv({{0, 0}}, u.data()), Error);  // an alias
  EXPECT_THROW(conv({{0, 0}}, y.data(), 2), Error);
  const RowPlace row{0, 0};
  const auto rule = [&](const float* a, float* out) {
    b.delta_rule({.qkv = u.data(),
                  .a = a,
                  .b = gates.data(),
                  .a_log = gates.data(),
                  .dt_bias = gates.data(),
                  .m = 1,
                  .rows = &row,
                  .state = state.get(),
                  .out = out});
  };
  rule(gates.data(), o.data());
  EXPECT_THROW(rule(gates.data(), u.data() + 10), Error);
  EXPECT_THROW(rule(nullptr, o.data()), Error);
  EXPECT_THROW(b.make_delta_state(shape_of({2, 3, 16, 16, 4, 1}, 1)), Error);
}

}  // namespace
}  // namespace nibble
