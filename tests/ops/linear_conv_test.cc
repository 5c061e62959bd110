// add_rmsnorm_linear_conv: one operation with the bits of the two, and their effect on the state.
#include <numeric>

#include "harness.h"
#include "ops/add_rmsnorm_linear_conv.h"

namespace nibble {
namespace {

using harness::Buffer;
using harness::random_floats;
using harness::same_bits;
using harness::size;

struct Of {
  std::int64_t hidden, value_heads;
  int taps;
  WeightType type;
  Activations activations;
};

class AddRmsNormLinearConvTest : public testing::TestWithParam<Of> {};

TEST_P(AddRmsNormLinearConvTest, HasTheBitsOfBoth) {
  const Of& of = GetParam();
  const DeltaShape s{.layers = 2,
                     .slots = 9,
                     .key_heads = 1,
                     .value_heads = of.value_heads,
                     .key_dim = 24,
                     .value_dim = 48,
                     .conv_kernel = of.taps};
  const std::int64_t k = of.hidden, channels = s.channels(), other = 37;
  const harness::RandomWeight u_source(of.type, channels, k, 64, 1),
      z_source(of.type, other, k, 64, 2);
  // Three steps of these many rows of slots 8, 7, ...; the second goes on where the first ended,
  // and in the third all sequences begin anew.
  for (const std::vector<std::int64_t>& runs : std::vector<std::vector<std::int64_t>>{
           {1}, {1, 1, 1}, {2, 1, 5}, {1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1}, {9, 2}}) {
    const std::int64_t m = std::accumulate(runs.begin(), runs.end(), std::int64_t{0});
    std::vector<float> want[3];
    for (const auto& b : harness::backends()) {
      const auto uw = b->pack(u_source, 1), zw = b->pack(z_source, 1);
      const auto state = b->make_delta_state(s), apart = b->make_delta_state(s);
      for (int step = 0; step < 3; ++step) {
        std::vector<RowPlace> rows;
        for (std::size_t i = 0; i < runs.size(); ++i)
          for (std::int64_t r = 0; r < runs[i]; ++r)
            rows.push_back(
                {8 - static_cast<int>(i), static_cast<std::int32_t>(step % 2 * runs[i] + r)});
        const unsigned seed = static_cast<unsigned>(10 * step);
        Buffer residual(*b, random_floats(size(m * k), seed + 2)),
            delta(*b, random_floats(size(m * k), seed + 3)), norm(*b, random_floats(size(k), 4)),
            taps(*b, random_floats(size(of.taps * channels), 5)), sum(*b, size(m * k)),
            u(*b, size(m * channels)), z(*b, size(m * other)), y(*b, size(m * channels)),
            y_apart(*b, size(m * channels));
        const LinearOutput outputs[] = {{uw.get(), nullptr, u.data(), channels},
                                        {zw.get(), nullptr, z.data(), other}};
        const AddRmsNormLinearArgs in{.residual = residual.data(),
                                      .delta = delta.data(),
                                      .weight = norm.data(),
                                      .residual_out = sum.data(),
                                      .m = m,
                                      .k = k,
                                      .activations = of.activations,
                                      .outputs = outputs};
        CausalConvArgs conv{u.data(), taps.data(), m, rows.data(), apart.get(), 1, y_apart.data()};
        b->add_rmsnorm_linear(in), b->causal_conv(conv);
        const std::vector<float> two = u.copy(), two_z = z.copy();
        conv.state = state.get(), conv.y = y.data();
        b->add_rmsnorm_linear_conv(in, conv);
        const std::vector<float> one = y.copy();
        ASSERT_TRUE(same_bits(one, y_apart.copy())) << b->describe() << " step " << step;
        ASSERT_TRUE(same_bits(u.copy(), two) && same_bits(z.copy(), two_z)) << b->describe();
        if (want[step].empty()) want[step] = one;
        ASSERT_TRUE(same_bits(one, want[step])) << b->describe() << " step " << step;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, AddRmsNormLinearConvTest,
                         testing::Values(Of{256, 4, 4, WeightType::Int4, Activations::Int16},
                                         Of{2560, 3, 4, WeightType::Int4, Activations::Int8},
                                         Of{256, 2, 3, WeightType::Int4, Activations::Int16},
                                         Of{256, 2, 4, WeightType::BF16, Activations::Int16}));

TEST(AddRmsNormLinearConv, RefusesOtherInputsAndAliases) {
  Backend& b = *harness::backends().back();
  const DeltaShape s{.layers = 1,
                     .slots = 1,
                     .key_heads = 1,
                     .value_heads = 1,
                     .key_dim = 16,
                     .value_dim = 32,
                     .conv_kernel = 4};
  const std::int64_t k = 64, channels = s.channels();
  const harness::RandomWeight source(WeightType::Int4, channels, k, 32, 1);
  const auto w = b.pack(source, 1);
  const auto state = b.make_delta_state(s);
  const RowPlace row{0, 0};
  Buffer x(b, size(k)), norm(b, size(k)), taps(b, size(4 * channels)), u(b, size(channels)),
      y(b, size(channels));
  const LinearOutput to{w.get(), nullptr, u.data(), channels};
  AddRmsNormLinearArgs a{.residual = x.data(), .weight = norm.data(), .m = 1, .k = k};
  a.outputs = {&to, 1};
  const CausalConvArgs c{u.data(), taps.data(), 1, &row, state.get(), 0, y.data()};
  EXPECT_NO_THROW(b.add_rmsnorm_linear_conv(a, c));
  CausalConvArgs bad = c;
  bad.u = y.data(), bad.y = u.data();
  EXPECT_THROW(b.add_rmsnorm_linear_conv(a, bad), Error);
  bad = c, bad.y = x.data();
  EXPECT_THROW(b.add_rmsnorm_linear_conv(a, bad), Error);
  a.outputs = {};
  a.normed = y.data();
  EXPECT_THROW(b.add_rmsnorm_linear_conv(a, c), Error);
}

}  // namespace
}  // namespace nibble
