// The emulator itself: it must show what a GPU may do. A kernel whose result depends on the order
// of blocks or warps gives different results under different schedules, and what never ends is
// told.
#include "backend/cuda/emulate/emulate.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "base/error.h"

namespace nibble::emulate {
namespace {

constexpr int kSchedules = 6;

// The published defect: every block reads the residual, block 0 writes it back.
TEST(Emulator, ShowsTheInPlaceResidual) {
  std::set<float> seen;
  for (int schedule = 0; schedule < kSchedules; ++schedule) {
    std::vector<float> residual(32, 1.0f), y(8);
    run(schedule, {8}, 32, 0, [&] {
      const unsigned i = place().thread.x, block = place().block.x;
      const float h = residual[i] + 2.0f;
      block_sync();
      if (i == 0) y[block] = h;
      if (block == 0) residual[i] = h;
    });
    seen.insert(y[7]);
  }
  EXPECT_EQ(seen, (std::set<float>{3.0f, 5.0f}));
}

TEST(Emulator, ShowsAMissingBarrier) {
  const auto last = [](bool barrier, int schedule) {
    float y = 0;
    run(schedule, {1}, 128, 128 * sizeof(float), [&] {
      auto* x = reinterpret_cast<float*>(shared_memory());
      const unsigned i = place().thread.x;
      x[i] = static_cast<float>(i);
      if (barrier) block_sync();
      if (i == 0) y = x[127];
    });
    return y;
  };
  bool wrong = false;
  for (int s = 0; s < kSchedules; ++s) {
    EXPECT_EQ(last(true, s), 127.0f);
    wrong = wrong || last(false, s) != 127.0f;
  }
  EXPECT_TRUE(wrong);
}

TEST(Emulator, AnAsynchronousCopyIsThereAfterItsWaitOnly) {
  std::vector<std::uint32_t> from(4, 7), before(1), after(1);
  run(0, {1}, 1, 16, [&] {
    copy_async(shared_memory(), from.data(), 16);
    copy_async_commit();
    before[0] = *reinterpret_cast<std::uint32_t*>(shared_memory());
    copy_async_commit();
    copy_async_wait(1);
    after[0] = *reinterpret_cast<std::uint32_t*>(shared_memory());
  });
  EXPECT_EQ(before[0], 0xffffffffu);
  EXPECT_EQ(after[0], 7u);
}

TEST(Emulator, TellsOfABarrierThatNotAllReach) {
  for (int s = 0; s < kSchedules; ++s)
    EXPECT_THROW(run(s, {2}, 64, 0,
                     [] {
                       if (place().thread.x < 40) warp_sync();
                     }),
                 Error);
}

TEST(Emulator, PassesOnWhatAKernelThrows) {
  EXPECT_THROW(run(2, {3}, 64, 0, [] { fail("bad"); }), Error);
  int blocks = 0;
  run(3, {5}, 1, 0, [&] { ++blocks; });
  EXPECT_EQ(blocks, 5);
}

}  // namespace
}  // namespace nibble::emulate
