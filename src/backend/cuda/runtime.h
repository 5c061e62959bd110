// The few calls of the CUDA runtime that the backend needs, on plain types: runtime.cu makes them,
// emulate/runtime.cc stands in for them. Every call that fails throws Error.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace nibble::NIBBLE_CUDA_NS {

// A device and its one stream; what is put in it runs in order.
struct Queue {
  void* stream = nullptr;
  int multiprocessors = 1;
  std::size_t shared_limit = 0;  // bytes of shared memory a block may have
  std::size_t shared_total = 0;  // bytes of shared memory of a multiprocessor
  int blocks = 0;                // > 0: blocks of a launch over tiles, whatever the device (tests)
  int schedule = 0;              // the emulator's order of blocks and warps
  int ahead = 0;                 // bytes of weights that a block asks the second cache for early
  bool overlap = false;          // launches may begin before the last one ends (ptx/device.cuh)
  // Of the last launch: shared memory of a block, if it is a stream everywhere; Begin::Wide.
  mutable std::size_t stream_bytes = 0;
  mutable bool wide = false;
  mutable bool alone = false;  // the next launch begins when the last one has ended
  bool clusters = false;       // the device has clusters of blocks
  bool warpgroups = false;     // the device has warpgroup.h's instructions
};

struct Graph;  // recorded launches

std::string why_absent();  // empty where a device and a driver are there
Queue open_queue();
void close_queue(Queue& q);
std::string device_name();
struct Memory {
  std::size_t free = 0, total = 0;
};
Memory device_memory();

void* allocate(std::size_t bytes);  // null: not enough memory
void release(void* p);
void* allocate_pinned(std::size_t bytes);  // of the host; the device copies it by itself
void release_pinned(void* p);
void copy_in(const Queue& q, void* device, const void* host, std::size_t bytes);   // waits
void copy_out(const Queue& q, void* host, const void* device, std::size_t bytes);  // waits
// From pinned memory, which stays as it is until wait(). In a recording: as it is at each replay.
void copy_in_later(const Queue& q, void* device, const void* pinned, std::size_t bytes);
void copy_within(const Queue& q, void* to, const void* from, std::size_t bytes);
void clear(const Queue& q, void* p, std::size_t bytes);
void wait(const Queue& q);

void begin_recording(const Queue& q);
Graph* end_recording(const Queue& q);
void replay(const Queue& q, const Graph& g);
void destroy(Graph* g);

}  // namespace nibble::NIBBLE_CUDA_NS
