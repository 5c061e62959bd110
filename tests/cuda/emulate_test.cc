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

// Each block of a cluster gives its number to the one after it.
TEST(Emulator, ShowsAMissingClusterBarrier) {
  constexpr int kBlocks = 4;
  const auto sum = [](bool barrier, int schedule) {
    std::vector<float> y(2 * kBlocks);
    run(
        schedule, {2 * kBlocks}, 2, 16,
        [&] {
          const unsigned block = place().block.x;
          auto* x = reinterpret_cast<float*>(shared_memory());
          x[place().thread.x] = -1;
          cluster_arrive(), cluster_wait();
          if (place().thread.x == 0)
            *static_cast<float*>(remote(x + 1, static_cast<int>((block + 1) % kBlocks))) =
                static_cast<float>(block);
          if (barrier) cluster_arrive(), cluster_wait();
          if (place().thread.x == 1) y[block] = x[1];
          cluster_arrive(), cluster_wait();  // nobody leaves before it is given its number
        },
        kBlocks);
    return y;
  };
  const std::vector<float> want = {3, 0, 1, 2, 7, 4, 5, 6};
  bool wrong = false;
  for (int s = 0; s < kSchedules; ++s) {
    EXPECT_EQ(sum(true, s), want);
    wrong = wrong || sum(false, s) != want;
  }
  EXPECT_TRUE(wrong);
}

TEST(Emulator, TellsOfABlockThatIsNotThere) {
  const auto store = [](bool arrives, bool stays) {
    run(
        0, {2}, 1, 16,
        [&] {
          if (arrives) cluster_arrive(), cluster_wait();
          if (place().block.x == 1 && !stays) return;
          if (place().block.x == 0 && !stays) cluster_arrive(), cluster_wait();
          remote(shared_memory(), 1 - static_cast<int>(place().block.x));
          if (stays) cluster_arrive(), cluster_wait();
        },
        2);
  };
  store(true, true);
  EXPECT_THROW(store(false, true), Error);
  EXPECT_THROW(store(true, false), Error);
  EXPECT_THROW(run(
                   0, {3}, 1, 0, [] {}, 2),
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
