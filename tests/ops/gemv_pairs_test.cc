// Rows under a norm and matrices with many rows for the blocks there are: the CUDA kernels that
// share five to eight rows of x out among blocks and take two tiles at once, and those of up to
// four rows, by few blocks of the emulator in several orders, and of a device where there is one.
#include <deque>

#include "harness.h"
#include "ops/add_rmsnorm_linear_conv.h"

namespace nibble {
namespace {

using harness::Buffer;
using harness::random_floats;
using harness::same_bits;
using harness::size;

std::vector<std::unique_ptr<Backend>> few_blocks() {
  std::vector<std::unique_ptr<Backend>> v;
#ifndef __SANITIZE_THREAD__
  for (const auto& [blocks, schedule] : {std::pair{1, 0}, {2, 0}, {3, 1}, {3, 2}, {5, 3}})
    v.push_back(emulated_backend(blocks, schedule));
#endif
  try {
    for (auto& b : cuda::make_schedules({1, 3, 7})) v.push_back(std::move(b));
  } catch (const Error&) {  // no device
  }
  return v;
}

struct Case {
  std::int64_t k, m;
  std::vector<std::int64_t> n;  // of each output
  bool swiglu, delta;
  Activations activations;
  int group = 64;
  WeightType type = WeightType::Int4;
};

// h, u and all y after each launch; the fifth has the first one's counts of turns again.
std::vector<float> run(Backend& b, const Case& c, int launches) {
  std::vector<std::unique_ptr<Weight>> w;
  std::deque<Buffer> y, bias;
  std::vector<LinearOutput> o;
  for (std::size_t i = 0; i < c.n.size(); ++i) {
    w.push_back(b.pack(
        harness::RandomWeight(c.type, c.n[i], c.k, c.group, static_cast<unsigned>(i + 1)), 1));
    y.emplace_back(b, size(c.m * c.n[i]));
    bias.emplace_back(b, random_floats(size(c.n[i]), static_cast<unsigned>(i + 20)));
  }
  for (std::size_t i = 0; i < c.n.size(); ++i)
    o.push_back({w[i].get(), i % 2 == 0 ? bias[i].data() : nullptr, y[i].data(), c.n[i]});
  std::vector<float> all;
  for (int i = 0; i < launches; ++i) {
    const auto seed = static_cast<unsigned>(3 * i);
    Buffer r(b, random_floats(size(c.m * c.k), seed + 3, 10)),
        d(b, random_floats(size(c.m * c.k), seed + 4)), g(b, random_floats(size(c.k), 5)),
        h(b, size(c.m * c.k)), u(b, size(c.m * c.k));
    b.add_rmsnorm_linear({.residual = r.data(),
                          .delta = c.delta ? d.data() : nullptr,
                          .weight = g.data(),
                          .residual_out = h.data(),
                          .normed = u.data(),
                          .m = c.m,
                          .k = c.k,
                          .activations = c.activations,
                          .outputs = o,
                          .epilogue = c.swiglu ? Epilogue::SwiGlu : Epilogue::None,
                          .plan = Plan::Fused});
    for (Buffer* of : {&h, &u})
      for (const float x : of->copy()) all.push_back(x);
    for (std::size_t j = 0; j < (c.swiglu ? 1 : y.size()); ++j)
      for (const float x : y[j].copy()) all.push_back(x);
  }
  return all;
}

void check_bits(std::initializer_list<Case> cases, int launches) {
  const auto devices = few_blocks();
  if (devices.empty()) GTEST_SKIP() << "neither emulator nor device";
  for (const Case& c : cases) {
    const std::vector<float> want = run(*harness::backends()[0], c, launches);
    for (const auto& b : devices)
      ASSERT_TRUE(same_bits(run(*b, c, launches), want)) << b->describe() << " K " << c.k;
  }
}

TEST(GemvPairs, HasTheCpusBits) {
  check_bits({{2048, 5, {352}, false, true, Activations::Int16},
              {5120, 8, {35, 400, 3}, false, true, Activations::Int16},
              {5056, 7, {336, 336}, true, false, Activations::Int16},
              {2560, 6, {160, 197}, false, false, Activations::Int8},
              {2560, 6, {160, 197}, false, true, Activations::Int16, 32}},
             6);
}

// Items of one, two, four and eight segments; of the third, more a block than two rounds have.
TEST(GemvWhole, HasTheCpusBits) {
  check_bits({{448, 2, {35, 50}, false, true, Activations::Int16},
              {576, 3, {160, 160}, true, true, Activations::Int8},
              {1088, 1, {1376}, false, false, Activations::Int16},
              {2048, 4, {35, 400, 3}, false, true, Activations::Int16},
              {5120, 1, {333}, false, true, Activations::Int16},
              {5056, 2, {336, 336}, true, false, Activations::Int16},
              // Two groups a stage.
              {5120, 1, {35, 333}, false, true, Activations::Int16, 32},
              {2048, 3, {160, 160}, true, false, Activations::Int16, 32},
              {1088, 4, {400}, false, true, Activations::Int8, 32}},
             2);
}

// Chains of four rows of W a block, of eight and of sixteen; more jobs than blocks.
TEST(GemvPlain, HasTheCpusBits) {
  check_bits({{5120, 1, {96, 5}, false, true, Activations::Int16, 0, WeightType::F32},
              {2048, 3, {257, 1}, false, true, Activations::Int16, 0, WeightType::BF16},
              {3072, 8, {35}, false, false, Activations::Int8, 0, WeightType::F16},
              {64, 2, {20}, false, true, Activations::Fp32, 0, WeightType::F32}},
             2);
}

TEST(GemvPairs, ConvolvesItsFirstOutput) {
  const auto devices = few_blocks();
  if (devices.empty()) GTEST_SKIP() << "neither emulator nor device";
  const DeltaShape s{.layers = 1,
                     .slots = 8,
                     .key_heads = 1,
                     .value_heads = 4,
                     .key_dim = 32,
                     .value_dim = 64,
                     .conv_kernel = 4};
  const std::int64_t m = 8, k = 2048, channels = s.channels(), other = 37;
  const auto of = [&](Backend& b) {
    const auto uw = b.pack(harness::RandomWeight(WeightType::Int4, channels, k, 128, 1), 1),
               zw = b.pack(harness::RandomWeight(WeightType::Int4, other, k, 128, 2), 1);
    const auto state = b.make_delta_state(s);
    std::vector<float> all;
    for (int step = 0; step < 3; ++step) {
      std::vector<RowPlace> rows;
      for (int i = 0; i < m; ++i) rows.push_back({7 - i, step % 2});
      Buffer residual(b, random_floats(size(m * k), static_cast<unsigned>(step))),
          norm(b, random_floats(size(k), 4)), taps(b, random_floats(size(4 * channels), 5)),
          u(b, size(m * channels)), z(b, size(m * other)), y(b, size(m * channels));
      const LinearOutput outputs[] = {{uw.get(), nullptr, u.data(), channels},
                                      {zw.get(), nullptr, z.data(), other}};
      AddRmsNormLinearArgs a{.residual = residual.data(), .weight = norm.data(), .m = m, .k = k};
      a.outputs = outputs, a.plan = Plan::Fused;
      b.add_rmsnorm_linear_conv(a,
                                {u.data(), taps.data(), m, rows.data(), state.get(), 0, y.data()});
      for (Buffer* v : {&u, &z, &y})
        for (const float x : v->copy()) all.push_back(x);
    }
    return all;
  };
  const std::vector<float> want = of(*harness::backends()[0]);
  for (const auto& b : devices) ASSERT_TRUE(same_bits(of(*b), want)) << b->describe();
}

}  // namespace
}  // namespace nibble
