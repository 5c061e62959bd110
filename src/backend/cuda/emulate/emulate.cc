#include "backend/cuda/emulate/emulate.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "base/error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// void nibble_switch(void** save, void* load): keeps the callee-saved registers on this stack, its
// pointer in *save, and goes on with the stack `load`.
extern "C" void nibble_switch(void** save, void* load);
asm(R"(
.text
.type nibble_switch, @function
nibble_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size nibble_switch, .-nibble_switch
)");

namespace nibble::emulate {
namespace {

constexpr int kLanes = 32;
constexpr std::size_t kStack = 128 << 10;

struct Barrier {
  int expected = 0, arrived = 0;
  std::uint64_t generation = 0;
  bool arrive() {  // true: everyone is here
    if (++arrived < expected) return false;
    arrived = 0, ++generation;
    return true;
  }
  void leave() {
    if (--expected > 0 && arrived == expected) arrived = 0, ++generation;
  }
};

struct Warp {
  Barrier barrier;
  std::uint32_t words[2][kLanes][12];  // exchanges alternate, so that a fast lane spoils nothing
};

struct Copy {
  void* to;
  const void* from;
  unsigned bytes;
};

struct Thread {
  Place place;
  struct Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  void* sp = nullptr;
  char* stack = nullptr;
  void* fake_stack = nullptr;                // AddressSanitizer's
  std::uint64_t cluster_phase = 0;           // of the cluster's barrier when it arrived
  const std::uint64_t* waits_for = nullptr;  // a generation ...
  std::uint64_t passed = 0;                  // ... that must be past this
  bool done = false;
  std::vector<Copy> open;                // cp.async since the last commit
  std::deque<std::vector<Copy>> groups;  // committed, oldest first
  const std::uint64_t* count = nullptr;  // likewise: one ...
  std::uint64_t least = 0;               // ... that must come to this
  bool can_run() const {
    return !done && (waits_for == nullptr || *waits_for != passed) &&
           (count == nullptr || *count >= least);
  }
};

struct Cluster {
  Barrier barrier;
  std::vector<struct Block*> blocks;  // null: has left
};

struct Block {
  std::shared_ptr<Cluster> cluster;
  unsigned rank = 0;
  std::size_t bytes = 0;
  bool in_cluster = false;  // a thread has arrived at the cluster's barrier
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  std::unique_ptr<char[]> storage;
  char* shared = nullptr;
  std::size_t left = 0;
};

Thread* now = nullptr;
void* scheduler_sp = nullptr;
const std::function<void()>* kernel = nullptr;
std::exception_ptr failure;
std::vector<char*> free_stacks;
#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_bottom = nullptr;
std::size_t scheduler_size = 0;
#endif

void to_scheduler([[maybe_unused]] bool for_good) {
  Thread* t = now;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &t->fake_stack, scheduler_bottom,
                                 scheduler_size);
#endif
  nibble_switch(&t->sp, scheduler_sp);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(t->fake_stack, &scheduler_bottom, &scheduler_size);
#endif
}

void resume(Thread& t) {
  now = &t;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, t.stack, kStack);
#endif
  nibble_switch(&scheduler_sp, t.sp);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  now = nullptr;
}

void wait(Barrier& b) {
  const std::uint64_t before = b.generation;
  if (b.arrive()) return;
  now->waits_for = &b.generation, now->passed = before;
  to_scheduler(false);
  now->waits_for = nullptr;
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
  try {
    (*kernel)();
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  Thread* t = now;
  t->done = true, --t->block->left;
  for (Barrier* b : {&t->block->barrier, &t->block->cluster->barrier})
    b->leave();  // counts as arrived
  to_scheduler(true);
}

void start(Thread& t) {
  if (free_stacks.empty()) {
    void* p = ::mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(p != MAP_FAILED, "not enough memory for an emulated thread's stack");
    free_stacks.push_back(static_cast<char*>(p));
  }
  t.stack = free_stacks.back(), free_stacks.pop_back();
  void** top = reinterpret_cast<void**>(t.stack + kStack) - 2;  // aligned as after a call
  *top = reinterpret_cast<void*>(&entry);
  t.sp = top - 6;
  std::memset(t.sp, 0, 6 * sizeof(void*));
}

void start(Block& b, Dim grid, Dim at, unsigned threads, std::size_t shared,
           const std::shared_ptr<Cluster>& cluster) {
  b.cluster = cluster, b.rank = static_cast<unsigned>(cluster->blocks.size()), b.bytes = shared;
  cluster->blocks.push_back(&b);
  cluster->barrier.expected += static_cast<int>(threads);
  b.threads = std::vector<Thread>(threads);
  b.warps = std::vector<Warp>((threads + kLanes - 1) / kLanes);
  b.barrier = {static_cast<int>(threads)};
  constexpr std::size_t kAlign = 1024;
  b.storage.reset(new char[shared + kAlign]);
  void* p = b.storage.get();
  std::size_t space = shared + kAlign;
  b.shared = static_cast<char*>(std::align(kAlign, shared, p, space));
  std::memset(b.shared, 0xff, shared);
  b.left = threads;
  for (unsigned i = 0; i < threads; ++i) {
    Thread& t = b.threads[i];
    t.place = {{i, 0, 0}, at, {threads}, grid};
    t.block = &b, t.warp = &b.warps[i / kLanes], t.lane = static_cast<int>(i % kLanes);
    ++t.warp->barrier.expected;
    start(t);
  }
}

// One pass over a block's warps. Each goes on until all its lanes wait for the block, or, at
// random, only a little. Returns whether anyone ran.
bool advance(Block& b, bool shuffled, std::mt19937_64& rng) {
  const auto n = static_cast<unsigned>(b.warps.size());
  const unsigned first = shuffled ? static_cast<unsigned>(rng() % n) : 0;
  const bool down = shuffled && rng() % 2 == 0;
  bool any = false;
  for (unsigned i = 0; i < n; ++i) {
    const unsigned w = (first + (down ? n - i : i)) % n;
    const unsigned count =
        std::min<unsigned>(kLanes, static_cast<unsigned>(b.threads.size()) - w * kLanes);
    int passes = shuffled && rng() % 4 == 0 ? static_cast<int>(rng() % 3) : 1 << 30;
    const bool backwards = shuffled && rng() % 2 == 0;
    for (bool ran = true; ran && passes-- > 0;) {
      ran = false;
      for (unsigned l = 0; l < count; ++l) {
        Thread& t = b.threads[w * kLanes + (backwards ? count - 1 - l : l)];
        if (!t.can_run()) continue;
        resume(t);
        ran = any = true;
        if (failure) return true;
      }
    }
  }
  return any;
}

void finish(Block& b) {
  b.cluster->blocks[b.rank] = nullptr;
  for (Thread& t : b.threads) free_stacks.push_back(t.stack);
}

}  // namespace

void run(int schedule, Dim grid, unsigned threads, std::size_t shared,
         const std::function<void()>& body, unsigned cluster) {
  require(now == nullptr && threads > 0 && threads <= 1024 && grid.x > 0 && grid.y > 0 &&
              grid.z > 0 && grid.y < 65536 && grid.z < 65536,
          "emulator: a launch of {} x {} x {} blocks of {} threads is refused", grid.x, grid.y,
          grid.z, threads);
  require(cluster > 0 && grid.x % cluster == 0, "emulator: {} blocks are no clusters of {}", grid.x,
          cluster);
  require(shared <= 232448, "emulator: {} bytes of shared memory are too many", shared);
  const bool shuffled = schedule > 1;
  std::mt19937_64 rng(static_cast<std::uint64_t>(schedule));
  const std::size_t clusters = static_cast<std::size_t>(grid.x) / cluster * grid.y * grid.z;
  std::vector<std::size_t> order(clusters);
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (schedule == 1) std::reverse(order.begin(), order.end());
  if (shuffled) std::shuffle(order.begin(), order.end(), rng);
  kernel = &body, failure = nullptr;
  std::deque<std::unique_ptr<Block>> resident;
  std::size_t next = 0;
  bool stuck = false;
  while (!failure && !stuck && (next < clusters || !resident.empty())) {
    while (next < clusters && resident.size() < (shuffled ? 4u : 1u)) {
      const auto of = std::make_shared<Cluster>();
      for (std::size_t i = order[next] * cluster; i < (order[next] + 1) * cluster; ++i) {
        resident.push_back(std::make_unique<Block>());
        start(*resident.back(), grid,
              {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
               static_cast<unsigned>(i / grid.x / grid.y)},
              threads, shared, of);
      }
      ++next;
    }
    stuck = true;
    for (std::size_t i = 0; i < resident.size() && !failure;) {
      stuck = !advance(*resident[i], shuffled, rng) && stuck && !shuffled;
      if (resident[i]->left > 0) {
        ++i;
        continue;
      }
      finish(*resident[i]);
      resident.erase(resident.begin() + static_cast<std::ptrdiff_t>(i));
      stuck = false;
    }
    if (shuffled && !resident.empty())
      stuck = std::none_of(resident.begin(), resident.end(), [](const auto& b) {
        return std::any_of(b->threads.begin(), b->threads.end(),
                           [](const Thread& t) { return t.can_run(); });
      });
  }
  for (const auto& b : resident) finish(*b);  // fibers cut short: what they own leaks, tests fail
  kernel = nullptr;
  if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
  require(!stuck, "emulator: threads wait for ever at a barrier that not all of them reach");
}

const Place& place() { return now->place; }
char* shared_memory() { return now->block->shared; }
void block_sync() { wait(now->block->barrier); }
void warp_sync() { wait(now->warp->barrier); }

void cluster_arrive() {
  Barrier& b = now->block->cluster->barrier;
  now->block->in_cluster = true, now->cluster_phase = b.generation;
  b.arrive();
}
void cluster_wait() {
  const std::uint64_t& phase = now->block->cluster->barrier.generation;
  if (phase != now->cluster_phase) return;
  now->waits_for = &phase, now->passed = phase;
  to_scheduler(false);
  now->waits_for = nullptr;
}
void await_count(const std::uint64_t* count, std::uint64_t least) {
  if (*count >= least) return;
  now->count = count, now->least = least;
  to_scheduler(false);
  now->count = nullptr;
}
void* remote(const void* at, int rank) {
  const auto& blocks = now->block->cluster->blocks;
  Block* to = static_cast<std::size_t>(rank) < blocks.size()
                  ? blocks[static_cast<std::size_t>(rank)]
                  : nullptr;
  const std::ptrdiff_t offset = static_cast<const char*>(at) - now->block->shared;
  require(to != nullptr && to->in_cluster && to->left > 0 && offset >= 0 &&
              static_cast<std::size_t>(offset) < to->bytes,
          "emulator: block {} of a cluster is not there to be stored to", rank);
  return to->shared + offset;
}

// The phase, above two times 16 bits: how many end it, how many are to come.
void barrier_init(void* barrier, int count) {
  *static_cast<std::uint64_t*>(barrier) = static_cast<std::uint64_t>(count) * 0x10001u;
}
void barrier_arrive(void* barrier) {
  auto& b = *static_cast<std::uint64_t*>(barrier);
  if ((--b & 0xffffu) == 0) b += (std::uint64_t{1} << 32) + (b >> 16 & 0xffffu);
}
void barrier_wait(void* barrier, int parity) {
  const auto& b = *static_cast<const std::uint64_t*>(barrier);
  while (static_cast<int>(b >> 32 & 1) == parity) {
    now->waits_for = &b, now->passed = b;
    to_scheduler(false);
    now->waits_for = nullptr;
  }
}

const std::uint32_t (*exchange(const std::uint32_t* words, int n))[12] {
  Warp& w = *now->warp;
  auto& buffer = w.words[w.barrier.generation % 2];
  std::memcpy(buffer[now->lane], words, static_cast<std::size_t>(n) * sizeof(std::uint32_t));
  wait(w.barrier);
  return buffer;
}

void copy_async(void* shared, const void* global, unsigned bytes) {
  require(reinterpret_cast<std::uintptr_t>(shared) % bytes == 0 &&
              reinterpret_cast<std::uintptr_t>(global) % bytes == 0,
          "emulator: an asynchronous copy of {} bytes is misaligned", bytes);
  now->open.push_back({shared, global, bytes});
}
void copy_async_commit() { now->groups.push_back(std::exchange(now->open, {})); }
void copy_async_wait(int groups_left) {
  while (now->groups.size() > static_cast<std::size_t>(groups_left)) {
    for (const Copy& c : now->groups.front()) std::memcpy(c.to, c.from, c.bytes);
    now->groups.pop_front();
  }
}

}  // namespace nibble::emulate
