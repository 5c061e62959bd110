// What every kernel file includes: CUDA, or the emulator in its place (emulate/emulate.h). Kernels
// use the names of ptx/device.cuh, threadIdx, blockIdx and gridDim, and dynamic shared memory only.
#pragma once
#include <cstddef>
#include <cstdint>

#include "backend/cuda/runtime.h"

#ifdef __CUDACC__
#include "backend/cuda/ptx/device.cuh"
#else
#include "backend/cuda/emulate/device.h"
#endif

namespace nibble::NIBBLE_CUDA_NS {

#ifdef __CUDACC__
void check_launch(const char* kernel);
void set_shared(const void* kernel, std::size_t bytes);

// Puts kernel(args...) in the queue: `grid` blocks of `threads`, each with `shared` bytes. Streams:
// of weights, one block a multiprocessor. What follows such a launch comes early only if it is one
// too: blocks of others would be in the way of the next stream's, two of which then share a
// multiprocessor while another has none.
template <bool Streams = false, class... P, class... A>
void launch(const Queue& q, const char* name, void (*kernel)(P...), dim3 grid, unsigned threads,
            std::size_t shared, const A&... args) {
  set_shared(reinterpret_cast<const void*>(kernel), shared);
  cudaLaunchAttribute overlap;
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t c{};
  c.gridDim = grid, c.blockDim = threads, c.dynamicSmemBytes = shared;
  c.stream = static_cast<cudaStream_t>(q.stream);
  c.attrs = &overlap, c.numAttrs = q.overlap && (Streams || !q.streams) ? 1 : 0;
  q.streams = Streams;
  cudaLaunchKernelEx(&c, kernel, args...);
  check_launch(name);
  trace_launch(name, grid, threads);
}
#else
void submit(const Queue& q, std::function<void()> f);  // runs it, or records it

template <bool Streams = false, class... P, class... A>
void launch(const Queue& q, const char*, void (*kernel)(P...), dim3 grid, unsigned threads,
            std::size_t shared, const A&... args) {
  submit(q, [=, schedule = q.schedule] {
    emulate::run(schedule, grid, threads, shared, [&] { kernel(args...); });
  });
}
#endif

}  // namespace nibble::NIBBLE_CUDA_NS
