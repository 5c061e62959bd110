#include "cuda/emulated.h"

#include "backend/cuda/adversary.h"
#include "backend/cuda/cuda_backend.h"

namespace nibble {

std::unique_ptr<Backend> emulated_backend(int blocks, int schedule, bool measures) {
  return std::make_unique<cuda_emulated::CudaBackend>(1, blocks, schedule, blocks == 1, measures);
}
std::vector<std::unique_ptr<Backend>> emulated_backends() {
  std::vector<std::unique_ptr<Backend>> v;
#ifndef __SANITIZE_THREAD__  // which cannot follow fibers; the emulator has one thread
  for (const auto& [blocks, schedule] : {std::pair{1, 0}, {0, 1}, {7, 2}})
    v.push_back(emulated_backend(blocks, schedule));
#endif
  return v;
}

int emulated_published(const WeightSource& w, std::span<const float> residual,
                       std::span<const float> delta, int launches, bool in_place, int schedule) {
  return cuda_emulated::count_published(w, residual, delta, launches, in_place, schedule).corrupt;
}

}  // namespace nibble
