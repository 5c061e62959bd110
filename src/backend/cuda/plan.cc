// Which plan of a product is faster on this device: measured when a shape is first met, kept.
#include <chrono>

#include "backend/cuda/cuda_backend.h"

namespace nibble::NIBBLE_CUDA_NS {

// Both plans write the same bits from what they do not write, so that running them again changes
// nothing. A recorded graph of some calls in a row is timed, the launches' gaps as in a step's.
bool CudaBackend::is_fused_faster(const PlanKey& key, bool guess,
                                  const std::function<void(bool)>& run) {
  if (const auto known = fused_.find(key); known != fused_.end()) return known->second;
  if (!measures_ || !recording_.empty()) return guess;
  using Clock = std::chrono::steady_clock;
  constexpr int kCalls = 4, kPasses = 4;
  Clock::duration least[2];
  for (const bool fused : {false, true}) {
    run(fused);  // scratch memory is there afterwards
    begin_recording(q_);
    for (int i = 0; i < kCalls; ++i) run(fused);
    const std::shared_ptr<Graph> g(end_recording(q_), destroy);
    for (int pass = 0; pass <= kPasses; ++pass) {  // the first warms up
      wait(q_);
      const auto begin = Clock::now();
      replay(q_, *g);
      wait(q_);
      const auto time = Clock::now() - begin;
      if (pass < 2 || time < least[fused]) least[fused] = time;
    }
  }
  return fused_[key] = least[1] <= least[0];
}

}  // namespace nibble::NIBBLE_CUDA_NS
