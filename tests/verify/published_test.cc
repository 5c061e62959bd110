// The published defect and its repair, simulated, beside Nibble's operation.
#include "verify/published.h"

#include <gtest/gtest.h>

#include "base/half.h"

namespace nibble::verify {
namespace {

const Story& story() {
  static const Story s = tell_story();
  return s;
}
const Story::Line& line(std::int64_t n, std::int64_t k) {
  for (const auto& l : story().lines)
    if (l.n == n && l.k == k) return l;
  throw Error("no such shape in the story");
}

// The jump of the published report, 0.10 -> 0.28, under the order of two thirds late.
TEST(Published, InPlaceJumpsUnderAnAdversarialOrder) {
  const auto& l = line(8704, 5120);
  EXPECT_NEAR(l.in_order, 0.10, 0.01);
  EXPECT_NEAR(l.in_place, 0.28, 0.015);
}

TEST(Published, ErrorGrowsWithTheShareLate) {
  const auto& curve = story().curve;
  ASSERT_EQ(curve.size(), 13u);
  EXPECT_NEAR(curve.front().second, 0.10, 0.01);
  EXPECT_NEAR(curve.back().second, 0.335, 0.015);
  for (std::size_t i = 1; i < curve.size(); ++i)
    EXPECT_GT(curve[i].second, curve[i - 1].second) << curve[i].first;
}

// At N <= 512 the repair is the in-place kernel; above it drops K % 512 columns, or all of them.
TEST(Published, TheSplitAbove512StillFails) {
  EXPECT_GT(line(256, 2048).split, 0.25);
  EXPECT_NEAR(line(5120, 4352).split, 0.27, 0.02);
  EXPECT_NEAR(line(1024, 256).split, 1.0, 1e-9);
  EXPECT_NEAR(line(8704, 5120).split, 0.10, 0.01) << "where it is right, it is";
  const Problem tail(1024, 640);
  EXPECT_EQ(launch_split_above_512(tail, 0).columns, 512);
}

TEST(Published, NibbleShowsNoneOfIt) {
  ASSERT_EQ(story().lines.size(), 4u);
  for (const auto& l : story().lines) {
    EXPECT_TRUE(l.nibble_bits) << l.n << "x" << l.k;
    EXPECT_NEAR(l.nibble, l.in_order, 1e-4) << l.n << "x" << l.k;
  }
}

// Late work-groups read residual + delta and add delta once more; which they are is fixed.
TEST(Published, TheOrderIsExecutedLiterally) {
  const Problem p(160, 128);
  const Launch all = launch_in_place(p, 1);
  ASSERT_EQ(all.inputs.size(), 2u);
  EXPECT_EQ(all.seen[0], 0);
  for (std::size_t g = 1; g < all.seen.size(); ++g) EXPECT_EQ(all.seen[g], 1);
  double ratio = 0;  // u of a late group is (residual + 2 delta) times one number
  for (std::size_t i = 0; i < 128; ++i) {
    const double h = static_cast<double>(p.residual[i]) + 2.0 * p.delta[i];
    if (std::fabs(h) < 0.1) continue;
    if (ratio == 0) ratio = all.inputs[1][i] / h;
    EXPECT_NEAR(all.inputs[1][i] / h, ratio, 1e-5 * std::fabs(ratio));
  }
  EXPECT_EQ(launch_in_place(p, 0).inputs.size(), 1u);
  const Launch half = launch_in_place(p, 0.5);
  EXPECT_EQ(std::count(half.seen.begin(), half.seen.end(), 1), 4);  // of ten, the first in time
}

}  // namespace
}  // namespace nibble::verify
