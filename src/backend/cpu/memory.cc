// Memory of the CPU backend, in huge pages where the system gives them: a weight stream touches
// every page once a token, and in small pages one core reads a third slower. A matrix may be
// smaller than a huge page, so arrays share slabs.
#include "backend/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>

#include "base/error.h"

namespace nibble::cpu {
namespace {

constexpr std::size_t kPage = 4096, kLine = 64, kHuge = 2u << 20, kSlab = 64u << 20;

std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

using Bytes = std::shared_ptr<char>;

// Null when there is no memory.
Bytes map(std::size_t bytes) {
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  return {static_cast<char*>(p), [bytes](char* q) { ::munmap(q, bytes); }};
}

// At least `bytes`, on a huge page's boundary.
Bytes map_huge(std::size_t bytes) {
  const Bytes all = map(round_up(bytes, kHuge) + kHuge);
  if (all == nullptr) return nullptr;
  const auto at = reinterpret_cast<std::uintptr_t>(all.get());
  char* first = all.get() + (kHuge - at % kHuge) % kHuge;
  ::madvise(first, round_up(bytes, kHuge), MADV_HUGEPAGE);
  return {all, first};
}

Bytes guarded(std::size_t used) {
  const std::size_t inner = round_up(used, kPage);
  const Bytes all = map(inner + 2 * kPage);
  if (all == nullptr) return nullptr;
  ::mprotect(all.get(), kPage, PROT_NONE);
  ::mprotect(all.get() + kPage + inner, kPage, PROT_NONE);
  return {all, all.get() + kPage + inner - round_up(used, kLine)};
}

// The slab small arrays are cut from now; gone with the last of them.
struct Slab {
  std::mutex mutex;
  std::weak_ptr<char> memory;
  std::size_t used = 0;
  Bytes take(std::size_t bytes) {
    const std::lock_guard lock(mutex);
    Bytes slab = memory.lock();
    if (slab == nullptr || used + bytes > kSlab) {
      slab = map_huge(kSlab);
      if (slab == nullptr) return map(bytes);  // enough may be left for this one
      memory = slab, used = 0;
    }
    char* at = slab.get() + used;
    used += round_up(bytes, kLine);
    return {slab, at};
  }
};

}  // namespace

std::shared_ptr<char> allocate(std::size_t bytes, const char* what, bool guard, bool huge) {
  static Slab slab;
  const std::size_t used = std::max<std::size_t>(1, bytes);
  Bytes p = guard              ? guarded(used)
            : !huge            ? map(used)
            : used > kSlab / 8 ? map_huge(used)
                               : slab.take(used);
  if (p == nullptr)
    fail("not enough memory for {}: {:.1f} MB needed", what, static_cast<double>(used) / 1e6);
  return p;
}

}  // namespace nibble::cpu
