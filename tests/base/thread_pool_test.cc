#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <stdexcept>

namespace nibble {
namespace {

// Workers finish before the caller looks, while it spins, and after it has fallen asleep (with a
// core for each thread it spins for 5 ms).
TEST(ThreadPool, CallerSeesWhatEveryThreadWrote) {
  for (const int threads : {1, 2, 7, available_cores()}) {
    ThreadPool pool(threads);
    std::vector<int> runs(static_cast<std::size_t>(pool.size()));  // not atomic: run() orders them
    std::mt19937 rng(static_cast<unsigned>(threads));
    for (int i = 0; i < 400; ++i) {
      const int late = static_cast<int>(rng() % static_cast<unsigned>(pool.size()));
      const std::chrono::microseconds delay(i % 40 == 0 ? 7000 : rng() % 100);
      pool.run([&](int t) {
        if (t == late && i % 2 == 0) std::this_thread::sleep_for(delay);
        ++runs[static_cast<std::size_t>(t)];
      });
      for (const int n : runs) ASSERT_EQ(n, i + 1) << threads << " threads";
    }
  }
}

TEST(ThreadPool, AnExceptionReachesTheCaller) {
  ThreadPool pool(3);
  for (int failing = 0; failing < 3; ++failing) {
    EXPECT_THROW(pool.run([&](int t) {
      if (t == failing) throw std::runtime_error("from a thread");
    }),
                 std::runtime_error);
    int n = 0;
    pool.run([&](int t) {
      if (t == 0) ++n;
    });
    EXPECT_EQ(n, 1);
  }
}

}  // namespace
}  // namespace nibble
