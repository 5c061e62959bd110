// What generation, perplexity and benchmarks need of an engine: small enough to fake in a test.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>

#include "engine/engine.h"

namespace nibble {

class Stepper {
 public:
  virtual ~Stepper() = default;
  // The contracts are those of Engine's functions of the same name.
  virtual std::span<const float> forward(std::span<const Engine::Input> inputs) = 0;
  virtual std::span<const TopLogits> forward_top(std::span<const Engine::Input> inputs) = 0;
  virtual std::span<const float> logits() = 0;
  virtual std::int64_t truncate(int slot, std::int64_t n) = 0;
  virtual void checkpoint(int slot) = 0;
  virtual bool recurrent() const = 0;
  virtual std::int64_t length(int slot) const = 0;
  virtual std::int64_t context() const = 0;
  virtual std::int64_t vocab() const = 0;
  virtual int slots() const = 0;
  virtual std::int64_t prefill_rows() const = 0;
};

// The real one. `engine` must outlive it.
class EngineStepper final : public Stepper {
 public:
  explicit EngineStepper(Engine& engine) : engine_(engine) {}
  std::span<const float> forward(std::span<const Engine::Input> inputs) override {
    return engine_.forward(inputs);
  }
  std::span<const TopLogits> forward_top(std::span<const Engine::Input> inputs) override {
    return engine_.forward_top(inputs);
  }
  std::span<const float> logits() override { return engine_.logits(); }
  std::int64_t truncate(int slot, std::int64_t n) override { return engine_.truncate(slot, n); }
  void checkpoint(int slot) override { engine_.checkpoint(slot); }
  bool recurrent() const override { return engine_.recurrent(); }
  std::int64_t length(int slot) const override { return engine_.length(slot); }
  std::int64_t context() const override { return engine_.context(); }
  std::int64_t vocab() const override { return engine_.vocab(); }
  int slots() const override { return engine_.slots(); }
  std::int64_t prefill_rows() const override { return engine_.prefill_rows(); }

 private:
  Engine& engine_;
};

// Prompts may be cut at multiples of this many positions without changing a bit.
inline constexpr std::int64_t kPromptGrid = 64;

// Where a chunk of a prompt of `total` positions that starts at `begin` ends, with room for at
// most `budget` rows: at the prompt's end or at a multiple of 64. `begin` when nothing fits.
inline std::int64_t chunk_end(std::int64_t begin, std::int64_t total, std::int64_t budget) {
  const std::int64_t reach = begin + budget;
  return reach >= total ? total : std::max(begin, reach / kPromptGrid * kPromptGrid);
}

// Rows of logits to ask for at once so that they stay near 16 MB: 64, 128, 192 or 256.
inline std::int64_t logit_rows(std::int64_t vocab) {
  const std::int64_t rows = (std::int64_t{4} << 20) / std::max<std::int64_t>(vocab, 1);
  return std::clamp<std::int64_t>(rows / kPromptGrid * kPromptGrid, kPromptGrid, 256);
}

// Gets logits: `rows` is [n, vocab], of positions `first`, first + 1, ...; gone after the call.
using LogitSink = std::function<void(std::int64_t first, std::span<const float> rows)>;

// Empties `slot` and prefills it with `ids` in chunks cut at multiples of 64. `sink` gets the
// logits of every position from `wanted` on (`wanted` >= ids.size(): none). Throws Error when
// `ids` is longer than the context.
void prefill(Stepper& stepper, int slot, std::span<const std::int32_t> ids, std::int64_t wanted,
             const LogitSink& sink);

}  // namespace nibble
