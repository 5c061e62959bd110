#include "int4/quantise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "base/error.h"
#include "int4/format.h"

namespace nibble::int4 {
namespace {

struct Quantised {
  std::vector<std::uint8_t> codes;
  std::vector<std::uint16_t> scales;
  int group;
  float value(std::size_t i) const {
    return static_cast<float>(codes[i] - 8) *
           half_to_float(scales[i / static_cast<std::size_t>(group)]);
  }
};

Quantised quantise(Method method, const std::vector<float>& x, std::int64_t k, int group) {
  Quantised q{std::vector<std::uint8_t>(x.size(), 99),
              std::vector<std::uint16_t>(x.size() / static_cast<std::size_t>(group), 0x7e00),
              group};
  quantise_rows(method, x.data(), static_cast<std::int64_t>(x.size()) / k, k, group, q.codes.data(),
                q.scales.data(), "t");
  return q;
}

std::vector<float> gaussian(unsigned seed, std::size_t n, float size = 0.02f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, size);
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

// The sym_int4 rule in the design's own words, in double but for the two fp32 steps it names.
void reference_rtn(const float* x, int n, std::uint8_t* codes, std::uint16_t& scale) {
  int at = 0;
  for (int i = 1; i < n; ++i)
    if (std::fabs(x[i]) > std::fabs(x[at])) at = i;
  const float d = x[at] / -8.0f;
  scale = float_to_half(d);
  for (int i = 0; i < n; ++i) {
    const float scaled = d == 0 ? 0 : x[i] * (1.0f / d);
    codes[i] = static_cast<std::uint8_t>(std::clamp(std::trunc(scaled + 8.5f), 0.0f, 15.0f));
  }
}

// The objective of Search, in double. Weights: root mean square of the group + |x|.
double objective(const float* x, int n, const std::uint8_t* codes, double scale) {
  double squares = 0, sum = 0;
  for (int i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double sigma = std::sqrt(squares / n);
  for (int i = 0; i < n; ++i) {
    const double e = x[i] - scale * (codes[i] - 8);
    sum += (sigma + std::fabs(x[i])) * e * e;
  }
  return sum;
}

// The least objective over 4,000 scales of either sign, each with its nearest codes.
double exhaustive(const float* x, int n) {
  double largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(static_cast<double>(x[i])));
  double best = INFINITY;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(n));
  for (int s = 1; s <= 2000; ++s)
    for (const double sign : {1.0, -1.0}) {
      const double scale = sign * largest / (4 + 8.0 * s / 2000);
      for (int i = 0; i < n; ++i)
        codes[static_cast<std::size_t>(i)] =
            static_cast<std::uint8_t>(std::clamp(std::round(x[i] / scale), -8.0, 7.0) + 8);
      best = std::min(best, objective(x, n, codes.data(), scale));
    }
  return best;
}

RC_GTEST_PROP(QuantiseRtn, FollowsTheRule, (unsigned seed)) {
  const int group = 32 << *rc::gen::inRange(0, 3);
  const auto k = static_cast<std::size_t>(2 * group);
  const float size = std::ldexp(1.0f, *rc::gen::inRange(-30, 14));
  auto x = gaussian(seed, 3 * k, size);
  for (const int i :
       *rc::gen::container<std::vector<int>>(rc::gen::inRange(0, static_cast<int>(x.size()))))
    x[static_cast<std::size_t>(i)] = *rc::gen::element(0.0f, -0.0f, 4 * size, -4 * size);
  const Quantised q = quantise(Method::Rtn, x, static_cast<std::int64_t>(k), group);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(group));
  for (std::size_t g = 0; g < q.scales.size(); ++g) {
    std::uint16_t scale = 0;
    reference_rtn(&x[g * codes.size()], group, codes.data(), scale);
    RC_ASSERT(q.scales[g] == scale);
    RC_ASSERT(std::equal(codes.begin(), codes.end(),
                         q.codes.begin() + static_cast<long>(g * codes.size())));
  }
}

// Weights that once went through the format come back bit for bit, with either method.
RC_GTEST_PROP(Quantise, OnGridWeightsAreExact, (unsigned seed)) {
  const int group = 32 << *rc::gen::inRange(0, 3);
  std::mt19937 random(seed);
  std::vector<float> x(static_cast<std::size_t>(4 * group));
  for (std::size_t g = 0; g < 4; ++g) {
    // Any finite scale, negative and subnormal ones too.
    const float scale =
        half_to_float(static_cast<std::uint16_t>((random() % 0x7c00) | (random() & 0x8000)));
    for (int i = 0; i < group; ++i)
      x[g * static_cast<std::size_t>(group) + static_cast<std::size_t>(i)] =
          scale * static_cast<float>(static_cast<int>(random() % 16) - 8);
    x[g * static_cast<std::size_t>(group) + random() % static_cast<unsigned>(group)] = scale * -8;
  }
  for (const Method method : {Method::Rtn, Method::Search}) {
    const Quantised q = quantise(method, x, group, group);
    for (std::size_t i = 0; i < x.size(); ++i) RC_ASSERT(q.value(i) == x[i]);
  }
}

RC_GTEST_PROP(QuantiseSearch, IsNeverWorseThanRtn, (unsigned seed)) {
  const int group = 32 << *rc::gen::inRange(0, 3);
  // The largest, 30 times an outlier of 2^11, still has an fp16 scale.
  const auto plain = gaussian(seed, static_cast<std::size_t>(8 * group),
                              std::ldexp(1.0f, *rc::gen::inRange(-24, 12)));
  auto x = plain;
  for (const int i : *rc::gen::container<std::vector<int>>(rc::gen::inRange(0, 8 * group)))
    x[static_cast<std::size_t>(i)] =
        plain[static_cast<std::size_t>(i)] * *rc::gen::element(0.0f, 1e-6f, 3.0f, 30.0f);
  const Quantised rtn = quantise(Method::Rtn, x, group, group);
  const Quantised search = quantise(Method::Search, x, group, group);
  for (std::size_t g = 0; g < 8; ++g) {
    const std::size_t at = g * static_cast<std::size_t>(group);
    const double r = objective(&x[at], group, &rtn.codes[at], half_to_float(rtn.scales[g]));
    const double s = objective(&x[at], group, &search.codes[at], half_to_float(search.scales[g]));
    RC_ASSERT(s <= r * (1 + 1e-6));
    for (std::size_t i = at; i < at + static_cast<std::size_t>(group); ++i)
      RC_ASSERT(search.codes[i] <= 15);
  }
}

TEST(QuantiseSearch, IsNearTheOptimumAndClearlyBelowRtn) {
  for (const int group : {32, 64, 128}) {
    const auto n = static_cast<std::size_t>(group);
    const auto x = gaussian(7, 100 * n);
    const Quantised rtn = quantise(Method::Rtn, x, group, group);
    const Quantised search = quantise(Method::Search, x, group, group);
    double r = 0, s = 0, best = 0;
    for (std::size_t g = 0; g < 100; ++g) {
      r += objective(&x[g * n], group, &rtn.codes[g * n], half_to_float(rtn.scales[g]));
      s += objective(&x[g * n], group, &search.codes[g * n], half_to_float(search.scales[g]));
      best += exhaustive(&x[g * n], group);
    }
    EXPECT_LT(s, 0.92 * r) << "group " << group;
    EXPECT_LT(s, 1.01 * best) << "group " << group;
  }
}

TEST(Quantise, GroupsAreIndependentOfTheirPlace) {
  const auto x = gaussian(3, 6 * 256);
  for (const Method method : {Method::Rtn, Method::Search}) {
    const Quantised whole = quantise(method, x, 256, 64), single = quantise(method, x, 64, 64);
    EXPECT_EQ(whole.codes, single.codes);
    EXPECT_EQ(whole.scales, single.scales);
  }
}

TEST(Quantise, TinyAndZeroGroupsGiveFiniteValues) {
  for (const float size : {0.0f, 1e-45f, 1e-39f, 1e-30f, 1e-8f, 1e-6f}) {
    std::vector<float> x(32, 0.0f);
    x[3] = size;
    x[9] = -size;
    for (const Method method : {Method::Rtn, Method::Search}) {
      const Quantised q = quantise(method, x, 32, 32);
      for (std::size_t i = 0; i < x.size(); ++i) {
        EXPECT_LE(q.codes[i], 15);
        if (size == 0) {
          EXPECT_EQ(q.codes[i], 8);
        }
        EXPECT_NEAR(q.value(i), x[i], 2.4e-7) << size;  // 8 times half of fp16's smallest step
      }
    }
  }
}

TEST(Quantise, FirstOfTiedMagnitudesDecidesTheSign) {
  std::vector<float> x(32, 0.25f);
  x[4] = -8;
  x[5] = 8;
  const Quantised q = quantise(Method::Rtn, x, 32, 32);
  EXPECT_EQ(half_to_float(q.scales[0]), 1.0f);
  EXPECT_EQ(q.codes[4], 0);
  EXPECT_EQ(q.codes[5], 15);
}

TEST(Quantise, AScaleBeyondFp16IsAnErrorNamingThePlace) {
  std::vector<float> x(128, 1.0f);
  x[70] = 524160;  // 8 * 65520, which rounds to infinity
  for (const Method method : {Method::Rtn, Method::Search}) {
    std::vector<std::uint8_t> codes(128);
    std::vector<std::uint16_t> scales(4);
    try {
      quantise_rows(method, x.data(), 2, 64, 32, codes.data(), scales.data(), "w", 10);
      FAIL();
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr("tensor w: row 11, columns 0..31"));
    }
  }
  x[70] = 524159;
  EXPECT_TRUE(std::isfinite(half_to_float(quantise(Method::Search, x, 64, 32).scales[2])));
}

RC_GTEST_PROP(Pack, Element8wPlusILiesInBits4i, (std::vector<std::uint8_t> codes)) {
  codes.resize((codes.size() + 7) / 8 * 8);
  for (auto& c : codes) c &= 15;
  std::vector<std::uint32_t> words(codes.size() / 8);
  pack(codes.data(), static_cast<std::int64_t>(codes.size()), words.data());
  for (std::size_t i = 0; i < codes.size(); ++i)
    RC_ASSERT(((words[i / 8] >> (4 * (i % 8))) & 15) == codes[i]);
}

}  // namespace
}  // namespace nibble::int4
