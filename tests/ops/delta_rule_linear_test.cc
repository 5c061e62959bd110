// What follows the delta rule: gated_rmsnorm_linear against its reference, and both in one
// operation, delta_rule_linear, with the bits of the two.
#include "ops/delta_rule_linear.h"

#include <numeric>

#include "harness.h"

namespace nibble {
namespace {

using harness::Buffer;
using harness::random_floats;
using harness::same_bits;
using harness::size;

TEST(GatedRmsNormLinear, MatchesReferenceAndBitsAgree) {
  for (const WeightType type : {WeightType::Int4, WeightType::BF16})
    for (const auto& [m, heads, dim] :
         {std::tuple{1, 3, 128}, std::tuple{3, 4, 48}, std::tuple{11, 8, 40}})
      for (const Activations act : {Activations::Int16, Activations::Fp32}) {
        const std::int64_t k = heads * dim, n = 37;
        const harness::RandomWeight source(type, n, k, 32, 1);
        const std::vector<float> o = random_floats(size(m * k), 2, 0.01f),
                                 z = random_floats(size(m * k), 3, 4),
                                 w = random_floats(size(dim), 4);
        std::vector<float> y;
        for (const auto& b : harness::backends()) {
          const auto packed = b->pack(source, 8);
          Buffer oi(*b, o), zi(*b, z), wi(*b, w), out(*b, size(m * n));
          const LinearOutput to{packed.get(), nullptr, out.data(), n};
          const GatedRmsNormLinearArgs args{oi.data(), zi.data(), wi.data(), 1e-6f,   m,
                                            heads,     dim,       act,       {&to, 1}};
          b->gated_rmsnorm_linear(args);
          if (y.empty()) {
            y = out.copy();
            std::vector<double> u(size(m * k)), want(y.size()), magnitude(y.size());
            gated_rmsnorm_reference(args, u.data());
            linear_reference(u.data(), m, k, dequantise(source, 0, n).data(), n, nullptr,
                             want.data(), magnitude.data());
            for (std::size_t i = 0; i < y.size(); ++i)
              ASSERT_LE(std::fabs(y[i] - want[i]), harness::bound(act, type, k) * magnitude[i]);
          }
          ASSERT_TRUE(same_bits(out.copy(), y)) << b->describe();
          GatedRmsNormLinearArgs alias = args;
          alias.z = out.data();
          EXPECT_THROW(b->gated_rmsnorm_linear(alias), Error);
        }
      }
}

// One operation has the bits of the two, for few rows and many, of one sequence and of several.
TEST(DeltaRuleLinear, HasTheBitsOfBoth) {
  const std::int64_t n = 37;
  struct Of {
    DeltaShape s;
    WeightType type;
    Activations activations;
  };
  const auto shape = [](std::int64_t keys, std::int64_t values, std::int64_t key_dim,
                        std::int64_t value_dim) {
    return DeltaShape{.layers = 2,
                      .slots = 9,
                      .key_heads = keys,
                      .value_heads = values,
                      .key_dim = key_dim,
                      .value_dim = value_dim,
                      .conv_kernel = 4};
  };
  const DeltaShape published = shape(4, 8, 128, 128), other = shape(2, 4, 32, 64);
  for (const Of& of : {Of{published, WeightType::Int4, Activations::Int16},
                       Of{published, WeightType::Int4, Activations::Int8},
                       Of{published, WeightType::Int4, Activations::Fp32},
                       Of{published, WeightType::BF16, Activations::Int16},
                       Of{other, WeightType::Int4, Activations::Int16}}) {
    const DeltaShape& s = of.s;
    const std::int64_t k = s.value_width();
    const harness::RandomWeight source(of.type, n, k, 64, 1);
    // Two steps of these many rows of slots 8, 7, ...; the second goes on where the first ended.
    for (const std::vector<std::int64_t>& runs : std::vector<std::vector<std::int64_t>>{
             {1}, {1, 1, 1}, {3}, {2, 1, 5}, {1, 1, 1, 1, 1, 1, 1, 1}, {9, 2}}) {
      const std::int64_t m = std::accumulate(runs.begin(), runs.end(), std::int64_t{0});
      std::vector<float> want[2], want_out[2], want_state;
      for (const auto& b : harness::backends()) {
        const auto packed = b->pack(source, 8);
        const auto state = b->make_delta_state(s);
        std::vector<float> all;
        const bool first = b == harness::backends()[0];
        for (int step = 0; step < 2; ++step) {
          std::vector<RowPlace> rows;
          for (std::size_t i = 0; i < runs.size(); ++i)
            for (std::int64_t r = 0; r < runs[i]; ++r)
              rows.push_back(
                  {8 - static_cast<int>(i), static_cast<std::int32_t>(step * runs[i] + r)});
          const unsigned seed = static_cast<unsigned>(10 * step);
          Buffer qkv(*b, random_floats(size(m * s.channels()), seed + 2)),
              z(*b, random_floats(size(m * k), seed + 3, 4)),
              a(*b, random_floats(size(m * s.value_heads), seed + 4, 3)),
              beta(*b, random_floats(size(m * s.value_heads), seed + 5, 2)),
              rate(*b, random_floats(size(s.value_heads), 6)),
              bias(*b, random_floats(size(s.value_heads), 7)),
              norm(*b, random_floats(size(s.value_dim), 8)), out(*b, size(m * k)),
              y(*b, size(m * n));
          const LinearOutput to{packed.get(), nullptr, y.data(), n};
          const DeltaRuleLinearArgs args{.rule = {.qkv = qkv.data(),
                                                  .a = a.data(),
                                                  .b = beta.data(),
                                                  .a_log = rate.data(),
                                                  .dt_bias = bias.data(),
                                                  .m = m,
                                                  .rows = rows.data(),
                                                  .state = state.get(),
                                                  .layer = 1,
                                                  .out = out.data(),
                                                  .activations = of.activations},
                                         .linear = {.o = out.data(),
                                                    .z = z.data(),
                                                    .weight = norm.data(),
                                                    .m = m,
                                                    .heads = s.value_heads,
                                                    .dim = s.value_dim,
                                                    .activations = of.activations,
                                                    .outputs = {&to, 1}}};
          DeltaRuleLinearArgs bad = args;
          bad.linear.o = z.data();
          EXPECT_THROW(b->delta_rule_linear(bad), Error);
          bad = args, bad.linear.heads = 1;
          EXPECT_THROW(b->delta_rule_linear(bad), Error);
          bad = args, bad.rule.a = y.data();
          EXPECT_THROW(b->delta_rule_linear(bad), Error);
          if (first) {  // the CPU's two
            b->delta_rule(args.rule), b->gated_rmsnorm_linear(args.linear);
            want[step] = y.copy(), want_out[step] = out.copy();
            continue;
          }
          b->delta_rule_linear(args);
          ASSERT_TRUE(same_bits(y.copy(), want[step]) && same_bits(out.copy(), want_out[step]))
              << b->describe() << ", " << m << " rows, " << activations_name(of.activations);
        }
        for (std::size_t i = 0; i < runs.size(); ++i)
          for (std::int64_t h = 0; h < s.value_heads; ++h) {
            std::vector<float> head(size(s.key_dim * s.value_dim));
            state->read(1, 8 - static_cast<int>(i), h, head.data());
            all.insert(all.end(), head.begin(), head.end());
          }
        if (first) want_state = all;
        ASSERT_TRUE(same_bits(all, want_state)) << b->describe();
      }
    }
  }
}

}  // namespace
}  // namespace nibble
