// The engine: a loaded model, its cache slots, and the step that advances up to kMaxSequences of
// them at once. A sequence's logits are the same bits alone and in any company, and for any split
// of its prompt at multiples of 64 positions.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "checkpoint/checkpoint.h"
#include "engine/sampler.h"
#include "ops/activations.h"

namespace nibble {

struct EngineOptions {
  Activations activations = Activations::Int16;
  std::string device = "cpu";
  int threads = 0;             // 0: every core this process may use
  std::int64_t context = 0;    // positions a slot holds; 0: min(the model's maximum, 4096)
  int slots = 1;               // sequences that may be alive at once
  int checkpoints = 4;         // of a slot's recurrent state, kept at most (models that have one)
  bool exact_prefill = false;  // prompts in `activations` too, where a device has fp16 for them
  bool check_finite = false;   // stop at the first operation that gives NaN or Inf, naming it
  // Called while loading with the fraction done (0..1); may be empty.
  std::function<void(double)> progress = {};
};

// What a decode step reads, and what the engine holds, in bytes.
struct EngineMemory {
  std::uint64_t weights = 0;            // all weights, as kept
  std::uint64_t weights_per_token = 0;  // read by one decode step of one sequence
  std::uint64_t kv_cache = 0;           // all slots
  std::uint64_t kv_per_position = 0;    // one position of one sequence
  std::uint64_t state = 0;              // recurrent state: all slots and their checkpoints
  std::uint64_t state_per_step = 0;     // recurrent state a sequence's step reads, and writes
  std::uint64_t scratch = 0;            // activations between operations, and logits
  std::uint64_t operations = 0;         // what a device keeps for inside its operations, so far
};

class Engine {
 public:
  static constexpr int kMaxSequences = 8;  // in one step

  enum class Logits { None, Last, All };
  struct Input {
    int slot = 0;                          // 0 .. slots-1, each at most once in a step
    std::span<const std::int32_t> tokens;  // appended to the slot; at least one
    Logits logits = Logits::Last;
    bool decode = false;  // a sequence's next token: one step's inputs are all such, or none is
  };

  // Loads the weights (source pages are released as they are repacked). Throws Error when the
  // architecture or device is unsupported or memory is short, saying how much is needed.
  Engine(const Checkpoint& checkpoint, const EngineOptions& options);
  ~Engine();

  // Appends every input's tokens to its slot and returns the wanted logits, fp32 [rows, vocab],
  // inputs in order, valid until the next forward(). At most kMaxSequences inputs and
  // prefill_rows() tokens in all. Throws Error for an id outside the vocabulary or a full slot
  // (nothing is changed then). When an operation fails, recurrent slots go back to a checkpoint. To
  // keep the promise of equal bits, callers cut prompts at multiples of 64 positions; generate.h
  // does.
  std::span<const float> forward(std::span<const Input> inputs);
  // The same, but the logits stay on a device: of each wanted row its largest, and logits() brings
  // the rows themselves, both valid until the next forward. Nothing where the host has the logits.
  std::span<const TopLogits> forward_top(std::span<const Input> inputs);
  std::span<const float> logits();

  void reset(int slot);  // length 0
  // Keeps the first n <= length positions. A recurrent state cannot be cut: it goes back to the
  // latest checkpoint at or before n, or to nothing. Returns how many tokens the caller must feed
  // again, those from length() to n; 0 in models without such a state.
  std::int64_t truncate(int slot, std::int64_t n);
  void checkpoint(int slot);    // remembers the present state, for truncate()
  bool recurrent() const;       // the model has such a state
  void copy(int from, int to);  // slot `to` becomes what `from` is
  std::int64_t length(int slot) const;
  std::int64_t context() const;
  std::int64_t vocab() const;
  int slots() const;
  std::int64_t prefill_rows() const;  // most of one forward(); a multiple of 64
  int threads() const;
  double read_bandwidth() const;  // bytes/s of the device's memory, measured now; 0: the host's
  std::string describe() const;   // "cpu avx512-vnni, 2 threads, int16 activations"
  EngineMemory memory() const;

 private:
  void step(std::span<const Input> inputs, bool top = false);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
