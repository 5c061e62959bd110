// The emulator's stand-in for the CUDA runtime: device memory is host memory, and what is put in
// the queue runs at once. A recording runs its launches when they are recorded and replays nothing:
// graphs are a matter of the real runtime.
#include "backend/cuda/runtime.h"

#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace nibble::NIBBLE_CUDA_NS {

struct Graph {};

std::string why_absent() { return {}; }
Queue open_queue() {
  return {.multiprocessors = 3, .shared_limit = 232448, .shared_total = 233472};
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
void copy_in(const Queue&, void* device, const void* host, std::size_t bytes) {
  std::memcpy(device, host, bytes);
}
void copy_out(const Queue&, void* host, const void* device, std::size_t bytes) {
  std::memcpy(host, device, bytes);
}
void copy_within(const Queue&, void* to, const void* from, std::size_t bytes) {
  std::memmove(to, from, bytes);
}
void clear(const Queue&, void* p, std::size_t bytes) { std::memset(p, 0, bytes); }
void wait(const Queue&) {}

void begin_recording(const Queue&) {}
Graph* end_recording(const Queue&) { return nullptr; }
void replay(const Queue&, const Graph&) { fail("emulator: a graph was replayed"); }
void destroy(Graph* g) { delete g; }

}  // namespace nibble::NIBBLE_CUDA_NS
