#include "engine/bandwidth.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <memory>
#include <new>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Reads every word. Eight chains, so that the loop waits for memory and not for the adder.
std::uint64_t sum_words(const std::uint64_t* p, std::size_t n) {
  std::uint64_t s[8] = {};
  for (std::size_t i = 0; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) s[j] += p[i + j];
  return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

// Free or reclaimable, so that a full page cache does not shrink the buffer below the caches.
std::uint64_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  for (std::uint64_t kib = 0; file >> key >> kib; file.ignore(64, '\n'))
    if (key == "MemAvailable:") return kib << 10;
  return static_cast<std::uint64_t>(::sysconf(_SC_AVPHYS_PAGES)) *
         static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

std::uint64_t last_level_cache() {
  std::set<std::string> counted;  // the processors that share one cache
  std::uint64_t total = 0;
  for (int cpu = 0;; ++cpu) {
    const std::string base = fmt::format("/sys/devices/system/cpu/cpu{}/cache/index", cpu);
    std::string shared, last_shared;
    std::uint64_t size = 0, kib = 0;
    for (int index = 0; std::ifstream(base + std::to_string(index) + "/size") >> kib; ++index) {
      std::ifstream(base + std::to_string(index) + "/shared_cpu_list") >> shared;
      if (kib << 10 >= size) size = kib << 10, last_shared = shared;
    }
    if (size == 0) return total;
    if (counted.insert(last_shared).second) total += size;
  }
}

Bandwidth measure_bandwidth(int threads, double seconds) {
  ThreadPool pool(threads);
  const auto n = static_cast<std::size_t>(pool.size());
  const std::uint64_t wanted = std::max<std::uint64_t>(128u << 20, 4 * last_level_cache());
  const std::size_t words = std::min(wanted, available_memory() / 2) / 8 / n / 8 * 8;  // a thread
  const std::size_t bytes = words * n * 8;
  const std::unique_ptr<std::uint64_t[]> buffer(new (std::nothrow) std::uint64_t[bytes / 8]);
  require(buffer != nullptr && bytes > 0,
          "no memory for the {} MiB buffer that measures the read "
          "bandwidth",
          wanted >> 20);
  const auto part = [&](int thread) {
    return buffer.get() + words * static_cast<std::size_t>(thread);
  };
  pool.run([&](int t) { std::fill(part(t), part(t) + words, 1); });  // first touch by the reader

  std::vector<double> rates;
  std::atomic<std::uint64_t> sink{0};  // keeps the reads alive
  const auto begin = Clock::now();
  const auto since = [](Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  };
  while (rates.size() < 3 || since(begin) < seconds) {
    const auto pass = Clock::now();
    pool.run([&](int t) { sink += sum_words(part(t), words); });
    rates.push_back(static_cast<double>(bytes) / since(pass));
  }
  require(sink == bytes / 8 * rates.size(), "the bandwidth buffer read back wrong: faulty memory?");
  std::sort(rates.begin(), rates.end());
  const std::size_t m = rates.size();
  return {rates[m / 2], rates[m / 4],        rates[m - 1 - m / 4],
          pool.size(),  static_cast<int>(m), bytes};
}

}  // namespace nibble
