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

// Where launches overlap, when one's blocks may come. Early: while the last launch runs. Late: when
// that has ended. Stream: of weights, a block a multiprocessor; early too, and launch_gemv() sees
// to it that two never lie on one multiprocessor while another has none. Wide: a stream whose
// blocks take all registers, so that nothing but the next stream may come before its end. After:
// early whatever came before, and lets the next one come when it has waited itself.
enum class Begin { Early, Late, Stream, Wide, After };

#ifdef __CUDACC__
void check_launch(const char* kernel);
void set_shared(const void* kernel, std::size_t bytes);

// Puts kernel(args...) in the queue: `grid` blocks of `threads`, each with `shared` bytes, in
// clusters of `cluster` blocks, neighbours along x (above 1: q.clusters).
template <Begin When = Begin::Early, class... P, class... A>
void launch_clusters(const Queue& q, const char* name, void (*kernel)(P...), unsigned cluster,
                     dim3 grid, unsigned threads, std::size_t shared, const A&... args) {
  set_shared(reinterpret_cast<const void*>(kernel), shared);
  const bool stream = When == Begin::Stream || When == Begin::Wide,
             early = q.overlap && (When == Begin::After ||
                                   (!q.alone && When != Begin::Late && (stream || !q.wide)));
  q.alone = false;
  // One of few blocks leaves multiprocessors empty: what comes next finds it no stream.
  q.stream_bytes = stream && static_cast<int>(grid.x) >= q.multiprocessors ? shared : 0;
  q.wide = When == Begin::Wide;
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (early) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {cluster, 1, 1};
  }
  cudaLaunchConfig_t c{};
  c.gridDim = grid, c.blockDim = threads, c.dynamicSmemBytes = shared;
  c.stream = static_cast<cudaStream_t>(q.stream);
  c.attrs = attributes, c.numAttrs = count;
  cudaLaunchKernelEx(&c, kernel, args...);
  check_launch(name);
  trace_launch(name, grid, threads);
}
#else
void submit(const Queue& q, std::function<void()> f);  // runs it, or records it

template <Begin When = Begin::Early, class... P, class... A>
void launch_clusters(const Queue& q, const char*, void (*kernel)(P...), unsigned cluster, dim3 grid,
                     unsigned threads, std::size_t shared, const A&... args) {
  submit(q, [=, schedule = q.schedule] {
    emulate::run(
        schedule, grid, threads, shared, [&] { kernel(args...); }, cluster);
  });
}
#endif
template <Begin When = Begin::Early, class... P, class... A>
void launch(const Queue& q, const char* name, void (*kernel)(P...), dim3 grid, unsigned threads,
            std::size_t shared, const A&... args) {
  launch_clusters<When>(q, name, kernel, 1, grid, threads, shared, args...);
}

}  // namespace nibble::NIBBLE_CUDA_NS
