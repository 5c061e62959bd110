#include "engine/bandwidth.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Reads every word. Eight chains, so that the loop waits for memory and not for the adder; asks for
// lines 16 KB ahead, as kernels do: the out-of-order window alone does not hide memory's latency.
// Hint: 2, into the second cache; 3, the first.
template <int Hint>
std::uint64_t sum_words(const std::uint64_t* p, std::size_t n) {
  std::uint64_t s[8] = {};
  for (std::size_t i = 0; i + 8 <= n; i += 8) {
    __builtin_prefetch(p + i + 2048, 0, Hint);
    for (int j = 0; j < 8; ++j) s[j] += p[i + j];
  }
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

ReadProbe::ReadProbe(int threads) : pool_(threads) {
  const auto n = static_cast<std::uint64_t>(pool_.size());
  const std::uint64_t wanted = std::max<std::uint64_t>(128u << 20, 4 * last_level_cache());
  words_ = std::min(wanted, available_memory() / 2) / 8 / n / 8 * 8;
  // In huge pages, as weights are kept (MADV_HUGEPAGE).
  const std::uint64_t huge = 2u << 20, size = (words_ * n * 8 + huge - 1) / huge * huge;
  buffer_.reset(static_cast<std::uint64_t*>(std::aligned_alloc(huge, size)));
  if (buffer_ != nullptr) ::madvise(buffer_.get(), size, MADV_HUGEPAGE);
  require(buffer_ != nullptr && words_ > 0,
          "no memory for the {} MiB buffer that measures the read bandwidth", wanted >> 20);
  pool_.run([&](int t) {  // first touch by the reader
    std::fill_n(buffer_.get() + words_ * static_cast<std::uint64_t>(t), words_, 1);
  });
  double best[2] = {};  // which cache is the better one differs by CPU
  for (int i = 0; i < 6; ++i) {
    first_cache_ = i % 2 != 0;
    best[i % 2] = std::max(best[i % 2], pass());
  }
  first_cache_ = best[1] > best[0];
}

double ReadProbe::pass() {
  std::atomic<std::uint64_t> sink{0};  // keeps the reads alive
  const auto begin = Clock::now();
  pool_.run([&](int t) {
    const std::uint64_t* from = buffer_.get() + words_ * static_cast<std::uint64_t>(t);
    sink += first_cache_ ? sum_words<3>(from, words_) : sum_words<2>(from, words_);
  });
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  require(sink == bytes() / 8, "the bandwidth buffer read back wrong: faulty memory?");
  return static_cast<double>(bytes()) / seconds;
}

Bandwidth measure_bandwidth(int threads, double seconds) {
  ReadProbe probe(threads);
  std::vector<double> rates;
  const auto begin = Clock::now();
  while (rates.size() < 3 || std::chrono::duration<double>(Clock::now() - begin).count() < seconds)
    rates.push_back(probe.pass());
  std::sort(rates.begin(), rates.end());
  const std::size_t m = rates.size();
  return {rates[m / 2],    rates[m / 4],        rates[m - 1 - m / 4],
          probe.threads(), static_cast<int>(m), probe.bytes()};
}

}  // namespace nibble
