// In place of the CUDA backend where no nvcc was found.
#include "backend/cuda/make.h"

namespace nibble::cuda {

bool built() { return false; }
std::unique_ptr<Backend> make(int) {
  fail(
      "this build has no CUDA: configure it where nvcc is found (NIBBLE_CUDA=ON), or use "
      "--device cpu");
}

std::vector<std::unique_ptr<Backend>> make_schedules() {
  std::vector<std::unique_ptr<Backend>> none;
  none.push_back(make(0));
  return none;
}

}  // namespace nibble::cuda
