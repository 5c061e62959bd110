// How fast this machine reads memory: the bound of decoding, which reads every weight per token.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "base/thread_pool.h"

namespace nibble {

struct Bandwidth {
  double median = 0, low = 0, high = 0;  // bytes a second, over passes; low and high: quartiles
  int threads = 0;
  int passes = 0;
  std::uint64_t buffer_bytes = 0;
};

// Bytes of the last-level caches of this machine together; 0 when it does not say.
std::uint64_t last_level_cache();

// Every thread sums its own part of a buffer several times larger than the last cache (at least
// 128 MiB, at most half of the memory that is free). threads: 0 = every core this process may use.
class ReadProbe {
 public:
  explicit ReadProbe(int threads);  // throws Error when there is no memory for the buffer
  double pass();                    // reads it once: bytes a second
  int threads() const { return pool_.size(); }
  std::uint64_t bytes() const { return words_ * static_cast<std::uint64_t>(pool_.size()) * 8; }

 private:
  ThreadPool pool_;
  std::uint64_t words_ = 0;   // a thread
  bool first_cache_ = false;  // where lines asked for early go
  struct Free {
    void operator()(std::uint64_t* p) const { std::free(p); }
  };
  std::unique_ptr<std::uint64_t[], Free> buffer_;
};

// Pass after pass for about `seconds`, three passes at least.
Bandwidth measure_bandwidth(int threads, double seconds);

}  // namespace nibble
