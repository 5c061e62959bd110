// The emulator's stand-in for the CUDA runtime: device memory is host memory, and what is put in
// the queue runs at once, or, in a recording, when it is replayed.
#include "backend/cuda/runtime.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "backend/cuda/device.h"
#include "base/error.h"

namespace nibble::NIBBLE_CUDA_NS {

struct Graph {
  std::vector<std::function<void()>> launches;
};

namespace {
Graph* recording = nullptr;
}

void submit(const Queue&, std::function<void()> f) {
  if (recording != nullptr) return recording->launches.push_back(std::move(f));
  f();
}

std::string why_absent() { return {}; }
Queue open_queue() {
  return {.multiprocessors = 3,
          .shared_limit = 232448,
          .shared_total = 233472,
          .ahead = 32 << 10,
          .clusters = true,
          .warpgroups = true};
}
void close_queue(Queue&) {}
std::string device_name() { return "emulated"; }
Memory device_memory() { return {std::size_t{4} << 30, std::size_t{4} << 30}; }

void* allocate(std::size_t bytes) {
  if (bytes > std::size_t{4} << 30) return nullptr;
  void* p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (p != nullptr) std::memset(p, 0xff, bytes);  // NaN: nobody may rely on zeros
  return p;
}
void release(void* p) { std::free(p); }
void* allocate_pinned(std::size_t bytes) { return allocate(bytes); }
void release_pinned(void* p) { release(p); }
void copy_in(const Queue&, void* device, const void* host, std::size_t bytes) {
  std::memcpy(device, host, bytes);
}
void copy_in_later(const Queue& q, void* device, const void* pinned, std::size_t bytes) {
  submit(q, [=] { std::memcpy(device, pinned, bytes); });
}
void copy_out(const Queue&, void* host, const void* device, std::size_t bytes) {
  std::memcpy(host, device, bytes);
}
void copy_within(const Queue& q, void* to, const void* from, std::size_t bytes) {
  submit(q, [=] { std::memmove(to, from, bytes); });
}
void clear(const Queue& q, void* p, std::size_t bytes) {
  submit(q, [=] { std::memset(p, 0, bytes); });
}
void wait(const Queue&) {}

void begin_recording(const Queue&) {
  require(recording == nullptr, "emulator: a recording is under way");
  recording = new Graph;
}
Graph* end_recording(const Queue&) { return std::exchange(recording, nullptr); }
void replay(const Queue&, const Graph& g) {
  for (const auto& f : g.launches) f();
}
void destroy(Graph* g) { delete g; }

}  // namespace nibble::NIBBLE_CUDA_NS
