#include "engine/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "engine/bandwidth.h"
#include "engine/sampler.h"
#include "fake_stepper.h"

namespace nibble {
namespace {

constexpr std::int64_t kVocab = 50;

std::vector<std::int32_t> text_of(std::size_t n) {
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < n; ++i)
    ids.push_back(static_cast<std::int32_t>(uniform(5, i) * kVocab));
  return ids;
}

// The rule written the slow way: every window in one forward of a fresh model.
Perplexity slow(std::vector<std::int32_t> ids, std::int64_t window, std::int64_t windows, int bos) {
  std::vector<double> losses;
  for (std::int64_t w = 0; w < windows; ++w) {
    std::vector<std::int32_t> t(ids.begin() + w * window, ids.begin() + (w + 1) * window);
    if (bos >= 0) t[0] = bos;
    FakeStepper fake(1, window, kVocab);
    for (std::int64_t at = 0; at < window; at += 64) {
      const std::int64_t n = std::min<std::int64_t>(64, window - at);
      const Engine::Input in{0, std::span(t).subspan(at, n), Engine::Logits::All};
      const auto rows = fake.forward({&in, 1});
      for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t target = at + i + 1;
        if (target < window / 2 + 1 || target >= window) continue;
        double sum = 0;
        for (int v = 0; v < kVocab; ++v) sum += std::exp(double{rows[i * kVocab + v]});
        losses.push_back(std::log(sum) - rows[i * kVocab + t[target]]);
      }
    }
  }
  double mean = 0, variance = 0;
  const auto n = static_cast<double>(losses.size());
  for (const double x : losses) mean += x / n;
  for (const double x : losses) variance += (x - mean) * (x - mean) / n;
  return {std::exp(mean), std::sqrt(variance / (n - 1)) * std::exp(mean), windows,
          static_cast<std::int64_t>(losses.size())};
}

class PerplexityWindow : public testing::TestWithParam<std::int64_t> {};

TEST_P(PerplexityWindow, IsTheRule) {
  const std::int64_t window = GetParam();
  const auto ids = text_of(static_cast<std::size_t>(3 * window + window / 2));
  for (const int bos : {-1, 7}) {
    FakeStepper fake(1, window, kVocab);
    PerplexityOptions o;
    o.window = window;
    if (bos >= 0) o.bos = bos;
    const Perplexity got = perplexity(fake, ids, o);
    const Perplexity expected = slow(ids, window, 3, bos);
    EXPECT_NEAR(got.perplexity, expected.perplexity, 1e-9 * expected.perplexity);
    EXPECT_NEAR(got.standard_error, expected.standard_error, 1e-9 * expected.perplexity);
    EXPECT_EQ(got.windows, 3);
    EXPECT_EQ(got.tokens, 3 * (window - window / 2 - 1));
    EXPECT_EQ(got.tokens, expected.tokens);
  }
}
INSTANTIATE_TEST_SUITE_P(Sizes, PerplexityWindow, testing::Values(4, 64, 100, 128, 300, 512, 1024));

TEST(Perplexity, StopsAfterTheWindowsAskedFor) {
  FakeStepper fake(1, 128, kVocab);
  PerplexityOptions o;
  o.window = 128;
  o.windows = 2;
  std::vector<std::int64_t> done;
  o.progress = [&](std::int64_t i, std::int64_t all, double) {
    EXPECT_EQ(all, 2);
    done.push_back(i);
  };
  EXPECT_EQ(perplexity(fake, text_of(1000), o).windows, 2);
  EXPECT_EQ(done, (std::vector<std::int64_t>{1, 2}));
}

TEST(Perplexity, AModelThatKnowsNothingScoresTheVocabulary) {
  FakeStepper fake(1, 64, kVocab);
  fake.change = [](const auto&, std::span<float> row) { std::fill(row.begin(), row.end(), 1e30f); };
  PerplexityOptions o;
  o.window = 64;
  const Perplexity p = perplexity(fake, text_of(128), o);
  EXPECT_NEAR(p.perplexity, kVocab, 1e-9);
  EXPECT_NEAR(p.standard_error, 0, 1e-6);
}

TEST(Perplexity, RefusesWhatCannotBeMeasured) {
  FakeStepper fake(1, 128, kVocab);
  PerplexityOptions o;
  o.window = 128;
  EXPECT_THROW(perplexity(fake, text_of(127), o), Error);
  o.window = 256;  // more than the context
  EXPECT_THROW(perplexity(fake, text_of(600), o), Error);
  o.window = 3;
  EXPECT_THROW(perplexity(fake, text_of(600), o), UsageError);
  o.window = 64;
  o.windows = -1;
  EXPECT_THROW(perplexity(fake, text_of(600), o), UsageError);
  o.windows = 0;
  fake.change = [](const auto& history, std::span<float> row) {
    if (history.size() == 40) row[1] = NAN;
  };
  EXPECT_THROW(perplexity(fake, text_of(600), o), Error);
}

TEST(Prefill, GivesEveryWantedPositionOnce) {
  for (const std::int64_t wanted : {0, 1, 63, 64, 200, 256, 300, 599, 600, 700}) {
    FakeStepper fake(1, 600, kVocab);
    std::int64_t next = wanted;
    prefill(fake, 0, text_of(600), wanted, [&](std::int64_t first, std::span<const float> rows) {
      EXPECT_EQ(first, next);
      next += static_cast<std::int64_t>(rows.size()) / kVocab;
    });
    EXPECT_EQ(next, std::max<std::int64_t>(wanted, 600)) << wanted;
    EXPECT_EQ(fake.length(0), 600);
    EXPECT_EQ(fake.prefilled, 600);
  }
}

TEST(Bandwidth, MeasuresTheThreadsAskedFor) {
  const Bandwidth b = measure_bandwidth(1, 0);
  EXPECT_EQ(b.threads, 1);
  EXPECT_EQ(b.passes, 3);
  EXPECT_GE(b.buffer_bytes, 2 * last_level_cache());
  EXPECT_GT(b.low, 0);
  EXPECT_LE(b.low, b.median);
  EXPECT_LE(b.median, b.high);
  EXPECT_LT(b.high, 1e12);  // one core reads no terabyte a second
}

TEST(Perplexity, DocumentsBeginWithBosAndAreScoredWhole) {
  const Tokenizer t = byte_tokenizer();
  GenerationConfig g;
  EXPECT_THROW(document_ids("ab", t, g), Error);
  g.eos = {kEos};
  EXPECT_EQ(document_ids("ab\n\nc", t, g), (std::vector<std::int32_t>{kEos, 'a', 'b', kEos, 'c'}));
  g.bos = 7;
  EXPECT_EQ(document_ids("a\n", t, g), (std::vector<std::int32_t>{7, 'a'}));

  FakeStepper fake(1, 64, kVocab);
  PerplexityOptions o;
  o.window = 64, o.score_all = true;
  EXPECT_EQ(perplexity(fake, text_of(150), o).tokens, 2 * 63);
}

}  // namespace
}  // namespace nibble
