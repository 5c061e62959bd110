#include "backend/cuda/make.h"

#include "backend/cuda/cuda_backend.h"

namespace nibble::NIBBLE_CUDA_NS {

bool built() { return true; }
static void require_device() {
  if (const std::string why = why_absent(); !why.empty())
    fail("no CUDA device can be used: {}; --device cpu needs none", why);
}
std::unique_ptr<Backend> make(int threads) {
  require_device();
  return std::make_unique<CudaBackend>(threads, 0, 0, false, true);
}
std::vector<std::unique_ptr<Backend>> make_schedules(std::initializer_list<int> blocks) {
  require_device();
  std::vector<std::unique_ptr<Backend>> v;
  v.push_back(std::make_unique<CudaBackend>(0));
  for (const int n : blocks) v.push_back(std::make_unique<CudaBackend>(1, n, 0, n == 7));
  return v;
}

}  // namespace nibble::NIBBLE_CUDA_NS
