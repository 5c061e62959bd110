// A fork-join pool for kernels: run(f) calls f(thread) once on every thread and returns when all
// are done. The caller is thread 0; workers are pinned to the cores this process may use. Waiting
// spins for 5 ms (20 us with more threads than cores), then sleeps. Nothing is allocated by run().
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace nibble {

class ThreadPool {
 public:
  // threads: 0 = every core this process may use.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // f(int thread), thread in [0, size()). Not reentrant; one caller at a time. The first exception
  // thrown by f is rethrown here after all threads are done.
  template <class F>
  void run(F&& f) {
    using Fn = std::remove_reference_t<F>;
    dispatch([](void* p, int t) { (*static_cast<Fn*>(p))(t); },
             const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  using Call = void (*)(void*, int);
  void dispatch(Call call, void* f);
  void work(int thread);
  bool all_done(std::uint32_t epoch) const;
  void invoke(int thread);

  int size_;
  bool has_cores_ = true;  // one for each thread
  Call call_ = nullptr;
  void* f_ = nullptr;
  std::mutex error_mutex_;
  std::exception_ptr error_;
  // A line for each worker: a counter of them all would travel from core to core.
  struct alignas(64) Done {
    std::atomic<std::uint32_t> epoch{0};  // the last it has finished
  };
  std::unique_ptr<Done[]> done_;
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  alignas(64) std::atomic<int> asleep_{0};  // 1: the caller sleeps; who finishes wakes it
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// Cores this process may use (its affinity mask).
int available_cores();

}  // namespace nibble
