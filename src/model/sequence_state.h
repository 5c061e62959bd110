// What a model remembers of its sequences, as one object: KV cache, convolution and recurrent
// state, lengths. They are reset, copied and taken back together.
//
// A KV cache can be cut anywhere. A recurrence cannot be run backwards: it is taken back to a
// checkpoint, a copy of the state that was kept, or to the beginning.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/config.h"

namespace nibble {

class SequenceState {
 public:
  struct Shape {
    KvShape kv;           // of the layers that attend
    DeltaShape delta;     // of those that do not; layers 0: none. slots as kv
    int checkpoints = 0;  // kept at most, a slot
    std::uint64_t bytes() const;
  };
  static Shape shape(const ModelConfig& c, int slots, std::int64_t context, KvType type,
                     int checkpoints);

  SequenceState(Backend& backend, const Shape& shape);

  KvCache* cache() const { return cache_.get(); }
  DeltaState* delta() const { return delta_.get(); }  // null where every layer attends
  bool recurrent() const { return delta_ != nullptr; }
  std::int64_t length(int slot) const { return slots_.at(static_cast<std::size_t>(slot)).length; }

  void advance(int slot, std::int64_t n);
  // Keeps the state at the present length; the slot's oldest checkpoint goes when there are too
  // many. Nothing to do where every layer attends.
  void checkpoint(int slot);
  // Cuts the slot to n <= length positions, or to the latest checkpoint before: returns how many
  // tokens, those that end at position n, must be fed again.
  std::int64_t truncate(int slot, std::int64_t n);
  // The slot's state is no longer that of its tokens: back to a checkpoint, whatever the length.
  void recover(int slot);
  // `to` becomes what `from` is; it keeps no checkpoints.
  void copy(int from, int to);

 private:
  struct Checkpoint {
    std::int64_t position, spare;  // spare: the slot of delta_ that holds it
  };
  struct Slot {
    std::int64_t length = 0;
    std::vector<Checkpoint> checkpoints;  // ascending positions
  };
  void restore(int slot, std::int64_t n);
  Slot& at(int slot) { return slots_.at(static_cast<std::size_t>(slot)); }

  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<DeltaState> delta_;
  std::vector<Slot> slots_;
  std::int64_t per_slot_;
};

}  // namespace nibble
