#include "base/shares.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace nibble {
namespace {

TEST(Shares, EveryItemIsTakenOnceWhoeverIsSlow) {
  for (const int threads : {1, 2, 3, 8})
    for (const std::int64_t total : {0, 1, 5, 64, 1000}) {
      Shares shares(threads);
      for (int repeat = 0; repeat < 3; ++repeat) {
        std::vector<std::atomic<int>> taken(static_cast<std::size_t>(total));
        shares.reset(total);
        std::vector<std::thread> workers;
        for (int t = 0; t < threads; ++t)
          workers.emplace_back([&, t] {
            shares.take(t, [&](std::int64_t begin, std::int64_t end, std::int64_t run_end) {
              EXPECT_LE(end, run_end);
              if (t == repeat) std::this_thread::sleep_for(std::chrono::microseconds(200));
              for (std::int64_t i = begin; i < end; ++i) ++taken[static_cast<std::size_t>(i)];
            });
          });
        for (std::thread& w : workers) w.join();
        for (const auto& n : taken) ASSERT_EQ(n, 1) << threads << " threads, " << total << " items";
      }
    }
}

TEST(Shares, TheOthersDoTheWorkOfOneThatNeverComes) {
  Shares shares(3);
  shares.reset(300);
  std::int64_t done = 0;
  for (const int t : {0, 2})
    shares.take(t,
                [&](std::int64_t begin, std::int64_t end, std::int64_t) { done += end - begin; });
  EXPECT_EQ(done, 300);
}

}  // namespace
}  // namespace nibble
