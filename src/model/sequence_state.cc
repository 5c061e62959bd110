#include "model/sequence_state.h"

#include <algorithm>

#include "base/error.h"

namespace nibble {

SequenceState::Shape SequenceState::shape(const ModelConfig& c, int slots, std::int64_t context,
                                          KvType type, int checkpoints) {
  Shape s{.kv = {.layers = c.attention_layers(),
                 .slots = slots,
                 .kv_heads = c.kv_heads,
                 .head_dim = c.head_dim,
                 .context = context,
                 .type = type},
          .delta = {}};
  if (!c.hybrid() || c.attention_layers() == c.layers) return s;
  s.delta = {.layers = c.layers - c.attention_layers(),
             .slots = slots,
             .key_heads = c.delta.key_heads,
             .value_heads = c.delta.value_heads,
             .key_dim = c.delta.key_dim,
             .value_dim = c.delta.value_dim,
             .conv_kernel = c.delta.conv_kernel};
  s.checkpoints = checkpoints;
  return s;
}

std::uint64_t SequenceState::Shape::bytes() const {
  return kv.bytes() + (delta.layers > 0
                           ? delta.slot_bytes() * static_cast<std::uint64_t>(delta.slots) *
                                 static_cast<std::uint64_t>(1 + checkpoints)
                           : 0);
}

SequenceState::SequenceState(Backend& backend, const Shape& shape)
    : cache_(backend.make_kv_cache(shape.kv)),
      slots_(static_cast<std::size_t>(shape.kv.slots)),
      per_slot_(shape.checkpoints) {
  if (shape.delta.layers == 0) return;
  DeltaShape with_spares = shape.delta;  // a checkpoint is a slot that no sequence has
  with_spares.slots *= 1 + per_slot_;
  delta_ = backend.make_delta_state(with_spares);
}

void SequenceState::advance(int slot, std::int64_t n) { at(slot).length += n; }

void SequenceState::checkpoint(int slot) {
  Slot& s = at(slot);
  if (!recurrent() || per_slot_ == 0 || s.length == 0) return;
  if (!s.checkpoints.empty() && s.checkpoints.back().position == s.length) return;
  std::int64_t spare = static_cast<std::int64_t>(slots_.size()) + slot * per_slot_;
  if (static_cast<std::int64_t>(s.checkpoints.size()) == per_slot_) {
    spare = s.checkpoints.front().spare;
    s.checkpoints.erase(s.checkpoints.begin());
  } else {
    const auto taken = [&](const Checkpoint& c) { return c.spare == spare; };
    while (std::any_of(s.checkpoints.begin(), s.checkpoints.end(), taken)) ++spare;
  }
  delta_->copy(slot, spare);
  s.checkpoints.push_back({s.length, spare});
}

// To the latest checkpoint at or before n.
void SequenceState::restore(int slot, std::int64_t n) {
  Slot& s = at(slot);
  while (!s.checkpoints.empty() && s.checkpoints.back().position > n) s.checkpoints.pop_back();
  s.length = 0;  // position 0 starts from nothing (ops/delta_net.h)
  if (s.checkpoints.empty()) return;
  s.length = s.checkpoints.back().position;
  delta_->copy(s.checkpoints.back().spare, slot);
}

std::int64_t SequenceState::truncate(int slot, std::int64_t n) {
  Slot& s = at(slot);
  if (n == s.length) return 0;
  if (recurrent())
    restore(slot, n);
  else
    s.length = n;
  return n - s.length;
}

void SequenceState::recover(int slot) {
  if (recurrent()) restore(slot, at(slot).length);
}

void SequenceState::copy(int from, int to) {
  if (from == to) return;
  cache_->copy(from, to, length(from));
  if (recurrent()) delta_->copy(from, to);
  at(to) = {length(from), {}};
}

}  // namespace nibble
