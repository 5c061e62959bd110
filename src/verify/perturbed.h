// A table of CPU kernels whose every entry first calls a hook, then the kernel itself: the way to
// delay, order or hold up the threads of an operation. It is a table like any other, so production
// code has no branch for it.
#pragma once
#include <atomic>
#include <cstdint>

#include "backend/cpu/kernels.h"

namespace nibble::verify {

// Which step of an operation is about to run on this thread.
enum class Stage : std::uint8_t { Norm, Residual, Prepare, Tile };

class Disturbance {
 public:
  virtual ~Disturbance() = default;
  virtual void begin() {}                // before an operation, by its caller
  virtual void before(Stage stage) = 0;  // on the thread that is about to run it
};

// The table of `isa` with hooks. They do nothing until a Disturbance is set, which no operation may
// straddle.
const cpu::Kernels& perturbed_kernels(cpu::Isa isa);
void set_disturbance(Disturbance* d);

// The adversary of the published defect: the first thread to arrive prepares its rows and writes
// its share of the outputs, while every other thread is held before it reads anything (20 ms at
// most, where a plan makes the first wait for the others).
class FirstThenOthers final : public Disturbance {
 public:
  void begin() override;
  void before(Stage stage) override;

 private:
  std::atomic<std::uint32_t> operation_{0};
  std::atomic<bool> led_{false}, open_{false};
};

// Random pauses on every thread: none mostly, else up to some microseconds, a yield or a sleep.
class RandomDelays final : public Disturbance {
 public:
  explicit RandomDelays(std::uint64_t seed) : seed_(seed) {}
  void before(Stage stage) override;

 private:
  std::uint64_t seed_;
  std::atomic<std::uint64_t> threads_{0};
};

}  // namespace nibble::verify
