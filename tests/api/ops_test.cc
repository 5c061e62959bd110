// The fused operation through its C and C++ API.
#include "nibble/ops.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <random>

#include "base/half.h"
#include "ops/add_rmsnorm_linear.h"

extern "C" int use_ops_from_c(void);

namespace nibble {
namespace {

using testing::HasSubstr;

TEST(OpsApi, FromC) { EXPECT_EQ(use_ops_from_c(), 0); }

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

// A stored INT4 matrix and its values.
struct Stored {
  std::int64_t n, k;
  int group;
  std::vector<std::int32_t> words;
  std::vector<std::uint16_t> scales;
  std::vector<float> values;

  Stored(std::int64_t rows, std::int64_t columns, int g, std::mt19937& rng)
      : n(rows), k(columns), group(g), words(size(n * k / 8)), scales(size(n * k / g)) {
    std::normal_distribution<float> normal(0, 0.02f);
    for (auto& w : words) w = static_cast<std::int32_t>(rng());
    for (auto& s : scales) s = float_to_half(normal(rng));
    for (std::int64_t i = 0; i < n * k; ++i) {
      const auto code = static_cast<std::uint32_t>(words[size(i / 8)]) >> (4 * (i % 8)) & 15;
      values.push_back((static_cast<float>(code) - 8) * half_to_float(scales[size(i / group)]));
    }
  }
};

// Values and how they are handed over.
struct Typed {
  nibble_dtype type;
  std::vector<float> values;  // exactly what the bits mean
  std::vector<std::uint16_t> bits;
  const void* data() const {
    return type == NIBBLE_F32 ? static_cast<const void*>(values.data()) : bits.data();
  }
  Typed(nibble_dtype t, std::vector<float> v) : type(t), values(std::move(v)) {
    if (t == NIBBLE_F32) return;
    for (float& x : values) {
      bits.push_back(t == NIBBLE_F16 ? float_to_half(x) : float_to_bf16(x));
      x = t == NIBBLE_F16 ? half_to_float(bits.back()) : bf16_to_float(bits.back());
    }
  }
};

std::vector<float> normal(std::size_t n, std::mt19937& rng, float scale = 1) {
  std::normal_distribution<float> d(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = d(rng);
  return v;
}

RC_GTEST_PROP(OpsApi, MatchesTheDoubleReference, ()) {
  std::mt19937 rng(*rc::gen::arbitrary<unsigned>());
  const auto m = *rc::gen::inRange<std::int64_t>(1, 12);
  const int group = *rc::gen::element(32, 64, 128);
  const auto k = group * *rc::gen::inRange<std::int64_t>(1, 9);
  const auto types = rc::gen::element(NIBBLE_F32, NIBBLE_F16, NIBBLE_BF16);
  const nibble_dtype delta_type = *types, norm_type = *types;
  const nibble_activations mode = *rc::gen::element(NIBBLE_INT16, NIBBLE_INT8, NIBBLE_FP32);
  const bool offset = *rc::gen::arbitrary<bool>(), with_delta = *rc::gen::arbitrary<bool>();
  const int count = *rc::gen::inRange(1, 5);

  FusedOps ops(*rc::gen::inRange(1, 4));
  const std::vector<float> residual = normal(size(m * k), rng, 2);
  const Typed delta(delta_type, normal(size(m * k), rng)),
      norm(norm_type, normal(size(k), rng, 0.3f));
  std::vector<Stored> stored;
  std::vector<Int4Weight> packed;
  std::vector<const nibble_weight*> weights;
  std::vector<std::vector<float>> y;
  std::vector<float*> outputs;
  for (int i = 0; i < count; ++i) {
    stored.emplace_back(*rc::gen::inRange<std::int64_t>(1, 50), k, group, rng);
    packed.push_back(
        ops.pack(stored[i].words.data(), stored[i].scales.data(), stored[i].n, k, group));
    y.emplace_back(size(m * stored[i].n), NAN);
  }
  for (int i = 0; i < count; ++i) {
    weights.push_back(packed[i].get());
    outputs.push_back(y[i].data());
  }
  std::vector<float> sum(size(m * k), NAN), normed(size(m * k), NAN);
  nibble_add_rmsnorm_int4_args a{};
  a.m = m, a.k = k, a.residual = residual.data();
  a.delta = with_delta ? delta.data() : nullptr, a.delta_type = delta_type;
  a.norm_weight = norm.data(), a.norm_type = norm_type;
  a.eps = 1e-5f, a.unit_offset = offset, a.activations = mode;
  a.residual_out = sum.data(), a.normed = normed.data();
  a.weight_count = count, a.weights = weights.data(), a.y = outputs.data();
  ops.add_rmsnorm_int4(a);

  std::vector<double> h(size(m * k)), u(size(m * k));
  AddRmsNormLinearArgs want;
  want.residual = residual.data(), want.delta = with_delta ? delta.values.data() : nullptr;
  want.weight = norm.values.data(), want.eps = 1e-5f, want.unit_offset = offset;
  want.m = m, want.k = k;
  add_rmsnorm_reference(want, h.data(), u.data());
  for (std::size_t i = 0; i < h.size(); ++i) {
    RC_ASSERT(std::fabs(sum[i] - h[i]) <= 1e-7 * std::fabs(h[i]));
    RC_ASSERT(std::fabs(normed[i] - u[i]) <= 4e-6 * std::fabs(u[i]));
  }
  const double top = mode == NIBBLE_INT16 ? 32512 : 127;
  for (int i = 0; i < count; ++i) {
    const std::size_t outs = y[i].size();
    std::vector<double> ref(outs), magnitude(outs);
    linear_reference(u.data(), m, k, stored[i].values.data(), stored[i].n, nullptr, ref.data(),
                     magnitude.data());
    for (std::int64_t j = 0; j < static_cast<std::int64_t>(outs); ++j) {
      // Whatever the seed: half a step of each 64 columns' scale, and the sums' own rounding.
      const std::int64_t r = j / stored[i].n, o = j % stored[i].n;
      double steps = 0;
      for (std::int64_t first = 0; mode != NIBBLE_FP32 && first < k; first += 64) {
        double largest = 0, weight = 0;
        for (std::int64_t c = first; c < std::min(first + 64, k); ++c) {
          largest = std::max(largest, std::fabs(u[size(r * k + c)]));
          weight += std::fabs(static_cast<double>(stored[i].values[size(o * k + c)]));
        }
        steps += 0.501 * largest / top * weight;
      }
      RC_ASSERT(std::fabs(y[i][size(j)] - ref[size(j)]) <=
                steps + 1.4e-5 * magnitude[size(j)] + 1e-12);
    }
  }
}

// The prepass alone, and the adapter: bits and copies.
TEST(OpsApi, PrepassAloneGivesTheSameRows) {
  std::mt19937 rng(1);
  const std::int64_t m = 3, k = 96;
  FusedOps ops(2);
  const Stored s(20, k, 32, rng);
  const Int4Weight w = ops.pack(s.words.data(), s.scales.data(), s.n, k, 32);
  const std::vector<float> residual = normal(size(m * k), rng), delta = normal(size(m * k), rng),
                           norm = normal(size(k), rng);
  std::vector<float> sum(size(m * k)), normed(size(m * k)), y(size(m * s.n));
  float* out = y.data();
  const nibble_weight* weight = w.get();
  nibble_add_rmsnorm_int4_args a{};
  a.m = m, a.k = k, a.residual = residual.data(), a.delta = delta.data();
  a.norm_weight = norm.data(), a.eps = 1e-6f;
  a.residual_out = sum.data(), a.normed = normed.data();
  a.weight_count = 1, a.weights = &weight, a.y = &out;
  ops.add_rmsnorm_int4(a);
  std::vector<float> sum2(sum.size()), normed2(sum.size());
  a.residual_out = sum2.data(), a.normed = normed2.data(), a.weight_count = 0;
  ops.add_rmsnorm_int4(a);
  EXPECT_EQ(sum, sum2);
  EXPECT_EQ(normed, normed2);

  std::vector<float> in_place = residual, y2(y.size());
  throw_on_error(nibble_add_rmsnorm_int4_inplace(ops.get(), in_place.data(), delta.data(),
                                                 NIBBLE_F32, norm.data(), NIBBLE_F32, 1e-6f, weight,
                                                 m, y2.data()));
  EXPECT_EQ(in_place, sum);
  EXPECT_EQ(y2, y);
  // An error leaves the residual alone.
  EXPECT_EQ(nibble_add_rmsnorm_int4_inplace(ops.get(), in_place.data(), delta.data(), NIBBLE_F32,
                                            norm.data(), NIBBLE_F32, -1, weight, m, y2.data()),
            NIBBLE_INVALID);
  EXPECT_EQ(in_place, sum);
}

TEST(OpsApi, RefusesWhatIsWrongAndSaysWhat) {
  std::mt19937 rng(1);
  const std::int64_t m = 2, k = 64;
  FusedOps ops(1);
  const Stored s(4, k, 32, rng);
  const Int4Weight w = ops.pack(s.words.data(), s.scales.data(), s.n, k, 32);
  std::vector<float> residual(size(m * k), 1), norm(size(k), 1), sum(size(m * k)), y(size(m * s.n));
  std::vector<std::uint16_t> delta(size(m * k));
  float* out = y.data();
  const nibble_weight* weight = w.get();
  nibble_add_rmsnorm_int4_args good{};
  good.m = m, good.k = k, good.residual = residual.data();
  good.delta = delta.data(), good.delta_type = NIBBLE_F16;
  good.norm_weight = norm.data(), good.residual_out = sum.data();
  good.weight_count = 1, good.weights = &weight, good.y = &out;
  ops.add_rmsnorm_int4(good);

  const auto refused = [&](const std::function<void(nibble_add_rmsnorm_int4_args&)>& change) {
    nibble_add_rmsnorm_int4_args a = good;
    change(a);
    EXPECT_EQ(nibble_add_rmsnorm_int4(ops.get(), &a), NIBBLE_INVALID);
    return std::string(nibble_last_error());
  };
  using Args = nibble_add_rmsnorm_int4_args;
  EXPECT_THAT(refused([](Args& a) { a.m = 0; }), HasSubstr("M"));
  EXPECT_THAT(refused([](Args& a) { a.k = 32; }), HasSubstr("K 32"));
  EXPECT_THAT(refused([](Args& a) { a.residual = nullptr; }), HasSubstr("residual"));
  EXPECT_THAT(refused([](Args& a) { a.norm_weight = nullptr; }), HasSubstr("norm_weight"));
  EXPECT_THAT(refused([](Args& a) { a.eps = -1; }), HasSubstr("eps"));
  EXPECT_THAT(refused([](Args& a) { a.weight_count = 5; }), HasSubstr("0 to 4"));
  EXPECT_THAT(refused([](Args& a) { a.weight_count = -1; }), HasSubstr("0 to 4"));
  EXPECT_THAT(refused([](Args& a) { a.y = nullptr; }), HasSubstr("y"));
  EXPECT_THAT(refused([](Args& a) { a.weight_count = 0, a.residual_out = nullptr; }),
              HasSubstr("nothing to write"));
  EXPECT_THAT(refused([](Args& a) { a.delta_type = static_cast<nibble_dtype>(3); }),
              HasSubstr("F16"));
  EXPECT_THAT(refused([](Args& a) { a.activations = static_cast<nibble_activations>(3); }),
              HasSubstr("INT16"));
  EXPECT_THAT(refused([&](Args& a) { a.residual_out = residual.data() + 1; }),
              HasSubstr("never writes what it reads"));
  // A converted input too is guarded where the caller has it.
  EXPECT_THAT(refused([&](Args& a) { a.normed = reinterpret_cast<float*>(delta.data() + 2); }),
              HasSubstr("apart from delta"));
  EXPECT_THAT(refused([&](Args& a) { a.normed = sum.data(); }), HasSubstr("apart from normed"));

  nibble_weight* none = nullptr;
  const auto pack = [&](std::int64_t n, std::int64_t columns, int group) {
    return nibble_weight_pack_int4(ops.get(), s.words.data(), s.scales.data(), n, columns, group,
                                   &none);
  };
  EXPECT_EQ(pack(4, 64, 48), NIBBLE_INVALID);
  EXPECT_EQ(pack(0, 64, 32), NIBBLE_INVALID);
  EXPECT_EQ(pack(4, 48, 32), NIBBLE_INVALID);
  std::vector<std::uint16_t> infinite(s.scales.size(), 0x7c00);
  EXPECT_EQ(nibble_weight_pack_int4(ops.get(), s.words.data(), infinite.data(), 4, 64, 32, &none),
            NIBBLE_INVALID);
  EXPECT_THAT(nibble_last_error(), HasSubstr("row 0, group 0"));
  EXPECT_EQ(none, nullptr);
  nibble_context* context = nullptr;
  EXPECT_EQ(nibble_context_create(-1, &context), NIBBLE_INVALID);
  EXPECT_EQ(nibble_context_create(1, nullptr), NIBBLE_INVALID);
  EXPECT_EQ(nibble_add_rmsnorm_int4(nullptr, &good), NIBBLE_INVALID);
  EXPECT_THROW(ops.pack(nullptr, nullptr, 1, 32, 32), std::invalid_argument);
}

}  // namespace
}  // namespace nibble
