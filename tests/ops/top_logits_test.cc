// top_logits: every backend's choice is the reference's, of any length, with ties and odd values.
#include "ops/top_logits.h"

#include "ops/harness.h"

namespace nibble {
namespace {

struct Top {
  std::vector<float> values;
  std::vector<std::int32_t> ids, bad;
};

Top run(Backend& b, const std::vector<float>& logits, std::int64_t m) {
  const auto count = static_cast<std::size_t>(m * kTopLogits);
  harness::Buffer in(b, logits), values(b, count), ids(b, count),
      bad(b, static_cast<std::size_t>(m));
  const auto as_ids = [](harness::Buffer& x) { return reinterpret_cast<std::int32_t*>(x.data()); };
  b.top_logits({.logits = in.data(),
                .m = m,
                .n = static_cast<std::int64_t>(logits.size()) / m,
                .values = values.data(),
                .ids = as_ids(ids),
                .bad = as_ids(bad)});
  EXPECT_TRUE(harness::same_bits(in.copy(), logits)) << "logits were written";
  Top t{values.copy(), std::vector<std::int32_t>(count),
        std::vector<std::int32_t>(static_cast<std::size_t>(m))};
  std::memcpy(t.ids.data(), ids.copy().data(), count * sizeof(float));
  std::memcpy(t.bad.data(), bad.copy().data(), t.bad.size() * sizeof(float));
  return t;
}

void expect_reference(const std::vector<float>& logits, std::int64_t m) {
  const std::int64_t n = static_cast<std::int64_t>(logits.size()) / m;
  for (const auto& b : harness::backends()) {
    const Top got = run(*b, logits, m);
    for (std::int64_t r = 0; r < m; ++r) {
      std::vector<float> values(kTopLogits);
      std::vector<std::int32_t> ids(kTopLogits);
      const std::int32_t bad =
          top_logits_reference(logits.data() + r * n, n, values.data(), ids.data());
      ASSERT_EQ(got.bad[static_cast<std::size_t>(r)], bad) << b->describe() << ", row " << r;
      if (bad >= 0) continue;
      const auto at = static_cast<std::size_t>(r * kTopLogits);
      for (std::size_t i = 0; i < kTopLogits; ++i) {
        ASSERT_EQ(got.ids[at + i], ids[i]) << b->describe() << ", row " << r << ", place " << i;
        ASSERT_TRUE(harness::same_bits(&got.values[at + i], &values[i], 1)) << b->describe();
      }
    }
  }
}

// A run of the kernel is 4096, and 64 runs are kept at once: below, at and above both.
TEST(TopLogits, IsTheReferencesChoice) {
  for (const std::int64_t n : {1, 63, 64, 65, 4095, 4096, 4097, 64 * 4096 + 5})
    expect_reference(harness::random_floats(static_cast<std::size_t>(2 * n), 3, 8), 2);
}

TEST(TopLogits, TiesGoToTheLowestId) {
  std::vector<float> x = harness::random_floats(9000, 4, 2);
  for (float& v : x) v = std::round(v);
  expect_reference(x, 3);
  x.assign(5000, -0.0f);
  for (std::size_t i = 0; i < x.size(); i += 3) x[i] = 0.0f;  // the same value
  expect_reference(x, 1);
}

TEST(TopLogits, RowsOfMinusInfinity) {
  std::vector<float> x(4200, -std::numeric_limits<float>::infinity());
  expect_reference(x, 1);
  x[4150] = -3;
  expect_reference(x, 1);
}

TEST(TopLogits, NamesTheFirstThatIsNoNumber) {
  for (const float bad : {NAN, -NAN, std::numeric_limits<float>::infinity()})
    for (const std::size_t at : {0u, 4095u, 4999u}) {
      std::vector<float> x = harness::random_floats(10000, 5, 2);
      x[5000 + at] = x[9999] = bad;  // in the second row
      expect_reference(x, 2);
    }
}

TEST(TopLogits, RefusesBadArguments) {
  Backend& b = *harness::backends()[0];
  float x[64] = {}, values[kTopLogits];
  std::int32_t ids[kTopLogits], bad;
  const TopLogitsArgs good{x, 1, 64, values, ids, &bad};
  b.top_logits(good);
  const auto refuses = [&](auto&& change) {
    TopLogitsArgs a = good;
    change(a);
    EXPECT_THROW(b.top_logits(a), Error);
  };
  refuses([](TopLogitsArgs& a) { a.logits = nullptr; });
  refuses([](TopLogitsArgs& a) { a.bad = nullptr; });
  refuses([](TopLogitsArgs& a) { a.n = 0; });
  refuses([](TopLogitsArgs& a) { a.m = 0; });
}

}  // namespace
}  // namespace nibble
