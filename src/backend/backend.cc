#include "backend/backend.h"

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/make.h"

namespace nibble {

std::vector<std::string> backend_names() { return {"cpu", cuda::kDevice}; }

std::unique_ptr<Backend> make_backend(std::string_view device, int threads) {
  if (device == "cpu") return std::make_unique<cpu::CpuBackend>(threads, cpu::best_isa());
  if (device == cuda::kDevice) return cuda::make(threads);
  fail_usage("device '{}' is unknown; there are: {}", device, fmt::join(backend_names(), ", "));
}

}  // namespace nibble
