#include "backend/backend.h"

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/make.h"

namespace nibble {

std::vector<std::string> backend_names() { return {"cpu", cuda::kDevice}; }

std::vector<std::string> device_names() {
  std::vector<std::string> names = backend_names();
  for (int i = 0; i < cpu::kIsaCount; ++i)
    if (const auto isa = static_cast<cpu::Isa>(i); cpu::isa_supported(isa))
      names.push_back(fmt::format("cpu:{}", cpu::isa_name(isa)));
  return names;
}

std::unique_ptr<Backend> make_backend(std::string_view device, int threads) {
  if (device == "cpu") return std::make_unique<cpu::CpuBackend>(threads, cpu::best_isa());
  if (device == cuda::kDevice) return cuda::make(threads);
  for (int i = 0; i < cpu::kIsaCount; ++i)
    if (const auto isa = static_cast<cpu::Isa>(i);
        cpu::isa_supported(isa) && device == fmt::format("cpu:{}", cpu::isa_name(isa)))
      return std::make_unique<cpu::CpuBackend>(threads, isa);
  fail_usage("device '{}' is unknown or not on this machine; there are: {}", device,
             fmt::join(device_names(), ", "));
}

}  // namespace nibble
