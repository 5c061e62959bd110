#include "backend/cuda/make.h"

#include "backend/cuda/cuda_backend.h"

namespace nibble::NIBBLE_CUDA_NS {

bool built() { return true; }
std::unique_ptr<Backend> make(int threads) {
  if (const std::string why = why_absent(); !why.empty())
    fail("no CUDA device can be used: {}; --device cpu needs none", why);
  return std::make_unique<CudaBackend>(threads);
}

}  // namespace nibble::NIBBLE_CUDA_NS
