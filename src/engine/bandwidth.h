// How fast this machine reads memory: the bound of decoding, which reads every weight per token.
#pragma once
#include <cstdint>

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
// 128 MiB, at most half of the memory that is free), pass after pass for about `seconds` (three
// passes at least). threads: 0 = every core this process may use. Throws Error when there is no
// memory for it.
Bandwidth measure_bandwidth(int threads, double seconds);

}  // namespace nibble
