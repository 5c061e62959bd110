#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "backend/cuda/device.h"
#include "backend/cuda/failure.h"
#include "backend/cuda/runtime.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  device_failure(std::string("cuda: ") + what + ": " + cudaGetErrorString(e));
}
cudaStream_t stream(const Queue& q) { return static_cast<cudaStream_t>(q.stream); }

}  // namespace

struct Graph {
  cudaGraphExec_t exec = nullptr;
};

void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }
void set_shared(const void* kernel, std::size_t bytes) {
  // All alike: a multiprocessor divides its memory anew only when it is empty.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "shared memory");
  if (bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)),
          "shared memory");
}

std::string why_absent() {
  int n = 0;
  const cudaError_t e = cudaGetDeviceCount(&n);
  if (e != cudaSuccess) return cudaGetErrorString(e);
  if (n == 0) return "no device";
  cudaDeviceProp p;
  if (cudaGetDeviceProperties(&p, 0) != cudaSuccess) return "the device cannot be asked";
  if (p.major < 8)
    return std::string(p.name) + " is too old: compute capability 8.0 or newer is needed";
  return {};
}
Queue open_queue() {
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, 0), "device");
  cudaStream_t s = nullptr;
  trace_open();
  check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "stream");
  Queue q;
  q.stream = s, q.multiprocessors = p.multiProcessorCount;
  const char* overlap = std::getenv("NIBBLE_CUDA_OVERLAP");  // 0: to measure what it gives
  q.overlap = p.major >= 9 && (overlap == nullptr || std::strcmp(overlap, "0") != 0);
  const char* ahead = std::getenv("NIBBLE_CUDA_AHEAD");  // KiB, likewise
  q.ahead = !q.overlap ? 0 : ahead != nullptr ? std::atoi(ahead) << 10 : 32 << 10;
  const char* wide = std::getenv("NIBBLE_CUDA_WIDE");          // 0, likewise
  const char* clusters = std::getenv("NIBBLE_CUDA_CLUSTERS");  // 0, likewise
  q.clusters = p.major >= 9 && (clusters == nullptr || std::strcmp(clusters, "0") != 0);
  q.warpgroups = p.major == 9 && (wide == nullptr || std::strcmp(wide, "0") != 0);
  q.shared_limit = p.sharedMemPerBlockOptin, q.shared_total = p.sharedMemPerMultiprocessor;
  return q;
}
void close_queue(Queue& q) {
  trace_write();
  // After what is under way, which may still read pinned memory: a load that failed, say.
  if (q.stream != nullptr) cudaStreamSynchronize(stream(q)), cudaStreamDestroy(stream(q));
  q.stream = nullptr;
}
std::string device_name() {
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, 0), "device");
  return std::string(p.name) + ", compute capability " + std::to_string(p.major) + "." +
         std::to_string(p.minor);
}
Memory device_memory() {
  Memory m;
  check(cudaMemGetInfo(&m.free, &m.total), "memory");
  return m;
}

void* allocate(std::size_t bytes) {
  void* p = nullptr;
  const cudaError_t e = cudaMalloc(&p, bytes > 0 ? bytes : 1);
  if (e == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // the error is told, not kept
    return nullptr;
  }
  check(e, "memory");
  return p;
}
void release(void* p) { cudaFree(p); }
void* allocate_pinned(std::size_t bytes) {
  void* p = nullptr;
  check(cudaMallocHost(&p, bytes > 0 ? bytes : 1), "pinned memory");
  return p;
}
void release_pinned(void* p) { cudaFreeHost(p); }
void copy_in(const Queue& q, void* device, const void* host, std::size_t bytes) {
  copy_in_later(q, device, host, bytes);
  wait(q);
}
void copy_in_later(const Queue& q, void* device, const void* pinned, std::size_t bytes) {
  check(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, stream(q)),
        "copy to device");
}
void copy_out(const Queue& q, void* host, const void* device, std::size_t bytes) {
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream(q)),
        "copy from device");
  wait(q);
}
void copy_within(const Queue& q, void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream(q)), "copy");
}
void clear(const Queue& q, void* p, std::size_t bytes) {
  check(cudaMemsetAsync(p, 0, bytes, stream(q)), "clear");
}
void wait(const Queue& q) { check(cudaStreamSynchronize(stream(q)), "a kernel"); }

void begin_recording(const Queue& q) {
  check(cudaStreamBeginCapture(stream(q), cudaStreamCaptureModeThreadLocal), "recording");
  trace_record();
}
Graph* end_recording(const Queue& q) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream(q), &graph), "recording");
  auto* g = new Graph;
  trace_recorded(g);
  const cudaError_t e = cudaGraphInstantiate(&g->exec, graph, 0);
  cudaGraphDestroy(graph);
  if (e != cudaSuccess) delete g;
  check(e, "graph");
  return g;
}
void replay(const Queue& q, const Graph& g) {
  check(cudaGraphLaunch(g.exec, stream(q)), "graph");
  trace_replay(&g);
}
void destroy(Graph* g) {
  if (g == nullptr) return;
  cudaGraphExecDestroy(g->exec);
  delete g;
}

}  // namespace nibble::NIBBLE_CUDA_NS
