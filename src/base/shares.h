// Work items [0, total) shared by threads: a thread takes steps of its own run, so that it streams
// memory in order, and then of the runs of threads that are behind. Who takes what never changes a
// result; it only evens out threads that are slowed.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace nibble {

class Shares {
 public:
  explicit Shares(int threads) : threads_(threads), runs_(std::make_unique<Run[]>(threads)) {}

  // Before the threads start.
  void reset(std::int64_t total) {
    for (int t = 0; t < threads_; ++t) {
      runs_[t].next.store(begin(total, t), std::memory_order_relaxed);
      runs_[t].end = begin(total, t + 1);
    }
    step_ = std::max<std::int64_t>(1, total / threads_ / 8);
  }

  // f(begin, end, run_end) for every step this thread gets; what lies before run_end comes next,
  // unless another thread takes it.
  template <class F>
  void take(int thread, F&& f) {
    for (int i = 0; i < threads_; ++i) {
      Run& run = runs_[(thread + i) % threads_];
      for (;;) {
        if (run.next.load(std::memory_order_relaxed) >= run.end) break;
        const std::int64_t at = run.next.fetch_add(step_, std::memory_order_relaxed);
        if (at >= run.end) break;
        f(at, std::min(at + step_, run.end), run.end);
      }
    }
  }

 private:
  struct alignas(64) Run {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };
  std::int64_t begin(std::int64_t total, int t) const { return total * t / threads_; }

  int threads_;
  std::int64_t step_ = 1;
  std::unique_ptr<Run[]> runs_;
};

}  // namespace nibble
