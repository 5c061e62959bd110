#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "backend/cuda/failure.h"
#include "backend/cuda/ptx/trace.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

struct Launch {
  const char* name;
  std::uint32_t grid, threads;
};
std::vector<Launch> launched, recorded;
std::map<const Graph*, std::vector<Launch>> graphs;
bool is_recording = false;

Trace* trace = nullptr;

// One by one as files of kernels are loaded, so it must be there before the first of them.
std::vector<const void*>& places() {
  static std::vector<const void*> all;
  return all;
}

}  // namespace

bool trace_place(const void* symbol) {
  places().push_back(symbol);
  return true;
}

void trace_open() {
  if (trace != nullptr) return;
  if (cudaMalloc(&trace, sizeof *trace) != cudaSuccess ||
      cudaMemset(trace, 0, sizeof *trace) != cudaSuccess)
    device_failure("trace: no memory for it on the device");
  for (const void* place : places())
    if (cudaMemcpyToSymbol(place, &trace, sizeof trace) != cudaSuccess)
      device_failure("trace: a file of kernels cannot be told where it is");
}

void trace_launch(const char* name, dim3 grid, unsigned threads) {
  (is_recording ? recorded : launched).push_back({name, grid.x * grid.y * grid.z, threads});
}
void trace_record() { is_recording = true, recorded.clear(); }
void trace_recorded(const Graph* g) { is_recording = false, graphs[g] = recorded; }
void trace_replay(const Graph* g) {
  launched.insert(launched.end(), graphs[g].begin(), graphs[g].end());
}

void trace_write() {
  const char* path = std::getenv("NIBBLE_CUDA_TRACE");
  if (path == nullptr || trace == nullptr) return;
  std::vector<TraceRecord> records(kTraceRecords);
  std::uint32_t count = 0;
  if (cudaDeviceSynchronize() != cudaSuccess ||
      cudaMemcpy(&count, &trace->count, sizeof count, cudaMemcpyDeviceToHost) != cudaSuccess ||
      cudaMemcpy(records.data(), trace->records, sizeof trace->records, cudaMemcpyDeviceToHost) !=
          cudaSuccess) {
    std::fprintf(stderr, "trace: the records cannot be read\n");
    return;
  }
  if (count != launched.size())
    std::fprintf(stderr, "trace: %u RECORDS OF %zu LAUNCHES\n", count, launched.size());
  if (count > kTraceRecords)
    std::fprintf(stderr, "trace: %u records dropped\n", count - kTraceRecords);
  records.resize(std::min<std::size_t>({count, kTraceRecords, launched.size()}));
  // Slots are taken in the order of beginnings, which may overlap.
  std::sort(records.begin(), records.end(),
            [](const TraceRecord& a, const TraceRecord& b) { return a.awaited < b.awaited; });
  std::FILE* file = std::fopen(path, "w");
  if (file == nullptr) {
    std::fprintf(stderr, "trace: cannot write %s\n", path);
    return;
  }
  std::fprintf(file, "name,grid,threads,await_ns,early_ns\n");
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < records.size(); ++i) {
    const TraceRecord& r = records[i];
    wrong += r.grid != launched[i].grid || r.threads != launched[i].threads;
    std::fprintf(file, "%s,%u,%u,%llu,%u\n", launched[i].name, r.grid, r.threads,
                 static_cast<unsigned long long>(r.awaited - records[0].awaited),
                 static_cast<std::uint32_t>(r.awaited) - r.start);
  }
  std::fclose(file);
  if (wrong > 0)
    std::fprintf(stderr, "trace: %zu RECORDS ARE NOT OF THE LAUNCH THEY ARE NAMED AFTER\n", wrong);
}

}  // namespace nibble::NIBBLE_CUDA_NS
