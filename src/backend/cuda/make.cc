#include "backend/cuda/make.h"

#include "backend/cuda/cuda_backend.h"

namespace nibble::NIBBLE_CUDA_NS {

bool built() { return true; }
std::unique_ptr<Backend> make(int threads) {
  if (const std::string why = why_absent(); !why.empty())
    fail("no CUDA device can be used: {}; --device cpu needs none", why);
  return std::make_unique<CudaBackend>(threads);
}
std::vector<std::unique_ptr<Backend>> make_schedules(std::initializer_list<int> blocks) {
  std::vector<std::unique_ptr<Backend>> v;
  v.push_back(make(0));
  for (const int n : blocks) v.push_back(std::make_unique<CudaBackend>(1, n));
  return v;
}

}  // namespace nibble::NIBBLE_CUDA_NS
