#include "engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "ops/top_logits.h"

namespace nibble {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

SamplingParams greedy() { return {.temperature = 0}; }

std::int32_t sample_once(const SamplingParams& p, const std::vector<float>& logits,
                         std::span<const std::int32_t> banned = {}) {
  return Sampler(p, static_cast<std::int64_t>(logits.size()), banned).sample(logits);
}

// The documented rule, written the slow way: full sorts, std::exp.
struct Reference {
  std::vector<std::int32_t> ids;  // in the order they are drawn from
  std::vector<double> weights;
};
Reference reference(const SamplingParams& p, const std::vector<float>& logits) {
  std::vector<std::int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const bool sorted =
      (p.top_k > 0 && p.top_k < static_cast<std::int64_t>(ids.size())) || p.top_p < 1;
  if (sorted)
    std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  if (p.top_k > 0 && p.top_k < static_cast<std::int64_t>(ids.size())) ids.resize(p.top_k);
  const double best = *std::max_element(logits.begin(), logits.end());
  Reference r;
  double total = 0, before = 0;
  for (const int id : ids) total += std::exp((logits[id] - best) / p.temperature);
  for (const int id : ids) {
    const double w = std::exp((logits[id] - best) / p.temperature);
    if (p.top_p < 1 && before > 0 && before >= p.top_p * total) break;
    before += w;
    if (w < p.min_p) continue;
    r.ids.push_back(id);
    r.weights.push_back(w);
  }
  return r;
}

TEST(Uniform, IsSplitMix64) {
  // Published outputs of splitmix64 from state 0; seed 0 starts there.
  const std::uint64_t expected[] = {0xe220a8397b1dcdafu, 0x6e789e6aa1b965f4u, 0x06c45d188009454fu};
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(uniform(0, i), static_cast<double>(expected[i] >> 11) * 0x1p-53);
  EXPECT_NE(uniform(1, 0), uniform(0, 1));
}

TEST(Sampler, GreedyTakesTheLowestIdOfEquals) {
  EXPECT_EQ(sample_once(greedy(), {1, 3, 2, 3}), 1);
  const std::int32_t banned[] = {1};
  EXPECT_EQ(sample_once(greedy(), {1, 3, 2, 3}, banned), 3);
}

TEST(Sampler, TopKOneIsGreedyWhateverTheSeed) {
  for (std::uint64_t seed = 0; seed < 20; ++seed)
    EXPECT_EQ(sample_once({.temperature = 5, .top_k = 1, .seed = seed}, {1, 3, 2, 3}), 1);
}

TEST(Sampler, RefusesNanAndInfinity) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {nan, kInf})
    for (const double t : {0.0, 1.0}) {
      EXPECT_THROW(sample_once({.temperature = t}, {0, 1, bad, 1}), Error);
      EXPECT_THROW(sample_once({.temperature = t}, {bad, 1, 1, 1}), Error);
    }
  EXPECT_EQ(sample_once({.temperature = 1}, {-kInf, -kInf, 1}), 2);
  EXPECT_THROW(sample_once({.temperature = 1}, {-kInf, -kInf}), Error);
  const std::int32_t all[] = {0, 1};
  EXPECT_THROW(sample_once(greedy(), {1, 2}, all), Error);
  Sampler other(greedy(), 3);
  EXPECT_THROW(other.sample(std::vector<float>{1, 2}), Error);
}

TEST(Sampler, BannedIdsAreNeverDrawn) {
  const std::int32_t banned[] = {0, 2};
  Sampler s({.temperature = 100}, 4, banned);
  for (int i = 0; i < 500; ++i)
    EXPECT_THAT(s.sample(std::vector<float>{90, 1, 99, 1}), testing::AnyOf(1, 3));
}

TEST(Sampler, RepetitionPenaltyCountsPromptAndAnswer) {
  Sampler s({.temperature = 0, .repetition_penalty = 2}, 3);
  s.accept_prompt(std::vector<std::int32_t>{0, 0});
  EXPECT_EQ(s.sample(std::vector<float>{4, 2.5f, 2.4f}), 1);  // 2, 2.5, 2.4: once, not squared
  EXPECT_EQ(s.sample(std::vector<float>{4, 2.5f, 1.9f}), 0);  // 2, 1.25, 1.9
  Sampler negative({.temperature = 0, .repetition_penalty = 2}, 2);
  negative.accept_prompt(std::vector<std::int32_t>{0});
  EXPECT_EQ(negative.sample(std::vector<float>{-1, -1.5f}), 1);  // -2 against -1.5
}

TEST(Sampler, PresencePenaltyCountsTheAnswerOnce) {
  Sampler s({.temperature = 0, .presence_penalty = 1}, 2);
  s.accept_prompt(std::vector<std::int32_t>{0});
  EXPECT_EQ(s.sample(std::vector<float>{1, 0.5f}), 0);     // the prompt does not count
  EXPECT_EQ(s.sample(std::vector<float>{1, 0.5f}), 1);     // 0 against 0.5
  EXPECT_EQ(s.sample(std::vector<float>{1.6f, 1.5f}), 0);  // 0.6 against 0.5: once, not twice
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits{0, 1, 2, -1};
  double total = 0;
  for (const float x : logits) total += std::exp(x / 0.8);
  Sampler s({.temperature = 0.8, .seed = 42}, 4);
  constexpr int kDraws = 40000;
  std::vector<int> count(4);
  for (int i = 0; i < kDraws; ++i) ++count[s.sample(logits)];
  for (int v = 0; v < 4; ++v)
    EXPECT_NEAR(count[v] / double{kDraws}, std::exp(logits[v] / 0.8) / total, 0.01) << v;
}

TEST(Sampler, ParametersOutOfRangeAreUsageErrors) {
  const auto bad = [](SamplingParams p) { EXPECT_THROW(Sampler(p, 4), UsageError); };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double t : {-0.1, nan, std::numeric_limits<double>::infinity()})
    bad({.temperature = t});
  bad({.top_k = -1});
  for (const double p : {-0.1, 1.1, nan}) {
    bad({.top_p = p});
    bad({.min_p = p});
  }
  for (const double r : {0.0, -1.0, nan}) bad({.repetition_penalty = r});
  bad({.presence_penalty = nan});
}

std::vector<float> random_logits(std::uint64_t seed, int n, bool coarse) {
  std::vector<float> x(n);
  for (int i = 0; i < n; ++i) {
    x[i] = static_cast<float>(uniform(seed, i) * 16 - 8);
    if (coarse) x[i] = std::round(x[i]);  // many ties
  }
  return x;
}

RC_GTEST_PROP(SamplerProperty, DrawsAsTheSlowRuleDoes, (std::uint64_t seed, bool coarse)) {
  const int n = *rc::gen::element(1, 2, 7, 300, 3000);
  const std::vector<float> logits = random_logits(seed, n, coarse);
  SamplingParams p{.temperature = *rc::gen::element(0.3, 1.0, 4.0),
                   .top_k = *rc::gen::element(0, 1, 2, 40, 299, 3000),
                   .top_p = *rc::gen::element(1.0, 0.999, 0.9, 0.3, 0.0),
                   .min_p = *rc::gen::element(0.0, 0.05, 1.0),
                   .seed = seed};
  const Reference r = reference(p, logits);
  Sampler s(p, n);
  double total = 0;
  for (const double w : r.weights) total += w;
  for (int i = 0; i < 20; ++i) {
    const double target = uniform(seed, i) * total;
    const std::int32_t got = s.sample(logits);
    const auto at = std::find(r.ids.begin(), r.ids.end(), got);
    RC_ASSERT(at != r.ids.end());
    double low = 0;
    for (auto j = r.ids.begin(); j != at; ++j) low += r.weights[j - r.ids.begin()];
    const double high = low + r.weights[at - r.ids.begin()];
    RC_ASSERT(target >= low - 1e-9 * total && target <= high + 1e-9 * total);
  }
}

TEST(Sampler, TopKOfRisingAndFallingLogits) {
  std::vector<float> rising(10000);
  std::iota(rising.begin(), rising.end(), 0.0f);
  std::vector<float> falling(rising.rbegin(), rising.rend());
  Sampler up({.temperature = 1e5, .top_k = 3}, 10000),
      down({.temperature = 1e5, .top_k = 3}, 10000);
  std::vector<int> seen_up, seen_down;
  for (int i = 0; i < 100; ++i) {
    seen_up.push_back(up.sample(rising));
    seen_down.push_back(down.sample(falling));
  }
  EXPECT_THAT(seen_up, testing::Each(testing::Ge(9997)));
  EXPECT_THAT(seen_down, testing::Each(testing::Le(2)));
  EXPECT_THAT(seen_up, testing::IsSupersetOf({9997, 9998, 9999}));
}

// The same on every machine and compiler: pinned.
TEST(Sampler, SeedPinsTheTokens) {
  const std::vector<float> logits = random_logits(1, 1000, false);
  const auto draw = [&](std::uint64_t seed) {
    Sampler s({.temperature = 1.5, .top_k = 200, .top_p = 0.9, .seed = seed}, 1000);
    std::vector<std::int32_t> ids;
    for (int i = 0; i < 6; ++i) ids.push_back(s.sample(logits));
    return ids;
  };
  EXPECT_EQ(draw(3), draw(3));
  EXPECT_NE(draw(3), draw(4));
  EXPECT_THAT(draw(3), testing::ElementsAre(867, 3, 244, 924, 390, 313));
}

// The row's largest logits give the row's own token, and nothing only where they cannot tell.
RC_GTEST_PROP(SamplerProperty, DrawsTheSameFromTheLargest, (std::uint64_t seed, bool coarse)) {
  const int n = *rc::gen::element(1, 5, 64, 65, 70, 300, 3000);
  SamplingParams p{.temperature = *rc::gen::element(0.0, 0.7, 4.0),
                   .top_k = *rc::gen::element(0, 1, 20, 60, 64, 65),
                   .top_p = *rc::gen::element(1.0, 0.9),
                   .min_p = *rc::gen::element(0.0, 0.05),
                   .repetition_penalty = *rc::gen::element(1.0, 1.3, 0.8),
                   .presence_penalty = *rc::gen::element(0.0, 1.5, -1.0),
                   .seed = seed};
  std::vector<std::int32_t> banned, prompt;
  for (int i = 0; i < n / 2; i += 3) banned.push_back(n - 1 - i);  // those of the end, descending
  if (n < 5 || seed % 3 == 0) banned.clear();
  for (int i = 0; i < 30; ++i) prompt.push_back((i * 7919) % n);
  Sampler whole(p, n, banned), few(p, n, banned);
  whole.accept_prompt(prompt), few.accept_prompt(prompt);
  int told = 0;
  for (std::uint64_t i = 0; i < 30; ++i) {
    const std::vector<float> logits = random_logits(seed + i % 4, n, coarse);
    float values[kTopLogits];
    std::int32_t ids[kTopLogits];
    const std::int32_t bad = top_logits_reference(logits.data(), n, values, ids);
    const std::optional<std::int32_t> id = few.sample(TopLogits{values, ids, bad});
    told += id.has_value();
    RC_ASSERT(!id || few.takes_top());
    RC_ASSERT(whole.sample(logits) == (id ? *id : few.sample(logits)));
  }
  const bool plain = p.repetition_penalty == 1 && p.presence_penalty == 0 && banned.empty();
  if (plain && (p.temperature == 0 || (p.top_k > 0 && p.top_k <= 64 && p.top_k < n)))
    RC_ASSERT(told == 30);
}

// All of the largest are penalised below one that is not among them.
TEST(Sampler, LeavesALateWinnerToTheWholeRow) {
  std::vector<float> logits(200);
  std::iota(logits.rbegin(), logits.rend(), 0.0f);
  Sampler s({.temperature = 0, .repetition_penalty = 1000}, 200);
  std::vector<std::int32_t> prompt(100);
  std::iota(prompt.begin(), prompt.end(), 0);
  s.accept_prompt(prompt);
  float values[kTopLogits];
  std::int32_t ids[kTopLogits];
  const std::int32_t bad = top_logits_reference(logits.data(), 200, values, ids);
  EXPECT_EQ(s.sample(TopLogits{values, ids, bad}), std::nullopt);
  EXPECT_EQ(s.sample(logits), 100);
}

TEST(Sampler, LeavesABadRowToTheWholeOne) {
  std::vector<float> logits(100, 1.0f);
  logits[7] = kInf;
  float values[kTopLogits];
  std::int32_t ids[kTopLogits];
  const std::int32_t bad = top_logits_reference(logits.data(), 100, values, ids);
  EXPECT_EQ(bad, 7);
  EXPECT_EQ(Sampler(greedy(), 100).sample(TopLogits{values, ids, bad}), std::nullopt);
}

}  // namespace
}  // namespace nibble
