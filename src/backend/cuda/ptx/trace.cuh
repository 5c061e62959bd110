// A trace of every launch, also of those that a replayed graph makes (NIBBLE_CUDA_TRACE, a build of
// its own): profilers fail on this program's graphs. As launches form one chain, the time from
// one's await_last() to the next one's is what it costs. Off: nothing of this is there.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::NIBBLE_CUDA_NS {

struct Graph;

#ifdef NIBBLE_CUDA_TRACE
struct TraceRecord {      // by the first thread of a grid
  std::uint64_t awaited;  // ns
  std::uint32_t start;    // likewise, the low half
  std::uint32_t grid, threads;
};
constexpr std::uint32_t kTraceRecords = 1000000;
struct Trace {
  std::uint32_t count;  // also of those that were too many
  TraceRecord records[kTraceRecords];
};
// Where it is: of each file of kernels, set by trace_open(), so that kernels need no argument.
static __constant__ Trace* trace_buffer;
bool trace_place(const void* symbol);
static const bool trace_placed = trace_place(&trace_buffer);

__device__ __forceinline__ bool is_first_thread() {
  return threadIdx.x == 0 && (blockIdx.x | blockIdx.y | blockIdx.z) == 0;
}
// Between start_next() and await_last() the slot is in PTX registers of the kernel: nothing waits
// for the atomic until then, and a second await_last() finds it used.
__device__ __forceinline__ void trace_start() {
  asm volatile(".reg .b32 trace_slot, trace_begin;\n\tmov.b32 trace_slot, -1;");
  if (is_first_thread())
    asm volatile(  // an add would become one of the warp, which waits for it
        "mov.u32 trace_begin, %%globaltimer_lo;\n\tatom.global.inc.u32 trace_slot, [%0], -2;" ::"l"(
            trace_buffer)
        : "memory");
}
__device__ __forceinline__ void trace_awaited() {
  if (!is_first_thread()) return;
  std::uint64_t now;
  std::uint32_t slot, start;
  asm volatile(
      "mov.u64 %0, %%globaltimer;\n\tmov.b32 %1, trace_slot;\n\tmov.b32 %2, trace_begin;\n\t"
      "mov.b32 trace_slot, -1;"
      : "=l"(now), "=r"(slot), "=r"(start)::"memory");
  if (slot < kTraceRecords)
    trace_buffer->records[slot] = {now, start, gridDim.x * gridDim.y * gridDim.z, blockDim.x};
}

// The host's half: the names, in the order of the records. One thread launches.
void trace_open();
void trace_launch(const char* name, dim3 grid, unsigned threads);
void trace_record();                // the next launches are those of a graph
void trace_recorded(const Graph*);  // of this one
void trace_replay(const Graph*);
void trace_write();  // to the file that $NIBBLE_CUDA_TRACE names
#else
__device__ __forceinline__ void trace_start() {}
__device__ __forceinline__ void trace_awaited() {}
inline void trace_open() {}
inline void trace_launch(const char*, dim3, unsigned) {}
inline void trace_record() {}
inline void trace_recorded(const Graph*) {}
inline void trace_replay(const Graph*) {}
inline void trace_write() {}
#endif

}  // namespace nibble::NIBBLE_CUDA_NS
