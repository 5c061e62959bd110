#include "backend/backend.h"

#include "backend/cpu/cpu_backend.h"

namespace nibble {

std::vector<std::string> backend_names() { return {"cpu"}; }

std::unique_ptr<Backend> make_backend(std::string_view device, int threads) {
  if (device == "cpu") return std::make_unique<cpu::CpuBackend>(threads, cpu::best_isa());
  fail_usage("device '{}' is not in this build; built: {}", device,
             fmt::join(backend_names(), ", "));
}

}  // namespace nibble
