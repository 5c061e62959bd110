#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace nibble {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waiting awake. Who sleeps while another process has one of the others' cores loses its own to
// that process, too: so for longer than the system lets a process run at once (3 to 4 ms). With
// more threads than cores only for longer than the serial part between two operations.
class Vigil {
 public:
  explicit Vigil(bool is_long) : is_long_(is_long) {}
  bool goes_on() {  // false: sleep
    pause();
    constexpr int kBrief = 4000;  // about 20 us
    if (++spins_ < kBrief) return true;
    if (!is_long_) return false;
    if (spins_ == kBrief) end_ = Clock::now() + std::chrono::milliseconds(5);
    return spins_ % 256 != 0 || Clock::now() < end_;
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool is_long_;
  int spins_ = 0;
  Clock::time_point end_;
};

std::vector<int> allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (::sched_getaffinity(0, sizeof set, &set) == 0)
    for (int c = 0; c < CPU_SETSIZE; ++c)
      if (CPU_ISSET(c, &set)) cores.push_back(c);
  return cores;
}

}  // namespace

int available_cores() { return std::max<int>(1, static_cast<int>(allowed_cores().size())); }

ThreadPool::ThreadPool(int threads) : size_(threads == 0 ? available_cores() : threads) {
  require(size_ > 0 && size_ <= 1024, "threads: expected 1 to 1024, got {}", threads);
  const std::vector<int> cores = allowed_cores();
  has_cores_ = static_cast<std::size_t>(size_) <= cores.size();
  done_ = std::make_unique<Done[]>(static_cast<std::size_t>(size_));
  for (int t = 1; t < size_; ++t) {
    workers_.emplace_back([this, t] { work(t); });
    if (!has_cores_) continue;  // let them float
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cores[static_cast<std::size_t>(t)], &set);
    ::pthread_setaffinity_np(workers_.back().native_handle(), sizeof set, &set);
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& w : workers_) w.join();
}

void ThreadPool::invoke(int thread) {
  try {
    call_(f_, thread);
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::dispatch(Call call, void* f) {
  call_ = call, f_ = f;
  const std::uint32_t epoch = epoch_.fetch_add(1, std::memory_order_release) + 1;
  if (size_ > 1) epoch_.notify_all();
  invoke(0);
  for (Vigil vigil(has_cores_); !all_done(epoch);) {
    if (vigil.goes_on()) continue;
    // Either this sees the last worker's epoch, or that worker sees this asleep.
    asleep_.store(1);
    if (!all_done(epoch)) asleep_.wait(1);
    asleep_.store(0);
  }
  if (error_) {
    const std::exception_ptr e = std::exchange(error_, nullptr);
    std::rethrow_exception(e);
  }
}

void ThreadPool::work(int thread) {
  std::uint32_t seen = 0;
  for (;;) {
    for (Vigil vigil(has_cores_); epoch_.load(std::memory_order_acquire) == seen;)
      if (!vigil.goes_on()) epoch_.wait(seen, std::memory_order_acquire);
    ++seen;  // dispatch() waits for every worker, so no epoch is ever missed
    if (stop_.load(std::memory_order_relaxed)) return;
    invoke(thread);
    done_[thread].epoch.store(seen);
    if (asleep_.load() == 1) asleep_.store(0), asleep_.notify_one();
  }
}

bool ThreadPool::all_done(std::uint32_t epoch) const {
  for (int t = 1; t < size_; ++t)
    if (done_[t].epoch.load() != epoch) return false;
  return true;
}

}  // namespace nibble
