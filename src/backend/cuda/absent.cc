// In place of the CUDA backend where no nvcc was found.
#include "backend/cuda/adversary.h"
#include "backend/cuda/make.h"

namespace nibble::cuda {

bool built() { return false; }
std::unique_ptr<Backend> make(int) {
  fail(
      "this build has no CUDA: configure it where nvcc is found (NIBBLE_CUDA=ON), or use "
      "--device cpu");
}

std::vector<std::unique_ptr<Backend>> make_schedules(std::initializer_list<int>) {
  std::vector<std::unique_ptr<Backend>> none;
  none.push_back(make(0));
  return none;
}

PublishedCount count_published(const WeightSource&, std::span<const float>, std::span<const float>,
                               int, bool, int) {
  make(0);
  return {};
}
struct Crowd::Impl {};
Crowd::Crowd(std::uint64_t) { make(0); }
Crowd::~Crowd() = default;
std::int64_t Crowd::launches() const { return 0; }

}  // namespace nibble::cuda
