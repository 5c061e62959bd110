// A decoder: its weights on a backend, and one forward pass over rows of any sequences. Written
// once against ops/ (decoder.cc); the kinds of layer are a file each (layers.h).
#pragma once
#include <functional>
#include <memory>
#include <span>

#include "backend/backend.h"
#include "checkpoint/checkpoint.h"

namespace nibble {

struct ForwardArgs {
  std::span<const std::int32_t> ids;        // [M]
  std::span<const RowPlace> rows;           // [M] where each id stands; a sequence's rows ascend
  std::span<const std::int32_t> logits_of;  // ascending indices of rows whose logits are wanted
  float* logits = nullptr;                  // backend memory [logits_of.size(), vocab]
  KvCache* cache = nullptr;                 // of the layers that attend
  Activations activations = Activations::Int16;
  bool check_finite = false;    // throw at the first operation with a NaN or Inf
  DeltaState* delta = nullptr;  // of the layers that do not attend; null where all do
  TopLogitsArgs top;            // outputs, where wanted: of `logits`
};

class Model {
 public:
  virtual ~Model() = default;
  // progress (may be empty) is called with the fraction loaded. max_rows: most rows of a forward().
  static std::unique_ptr<Model> load(const Checkpoint& checkpoint, Backend& backend,
                                     std::int64_t max_rows,
                                     const std::function<void(double)>& progress);

  virtual void forward(const ForwardArgs& a) = 0;
  virtual std::uint64_t weight_bytes() const = 0;            // as kept
  virtual std::uint64_t weight_bytes_per_token() const = 0;  // read by one row's decode
  virtual std::uint64_t scratch_bytes() const = 0;
};

// Bytes load() will keep, from shapes alone: to refuse before loading. Of activations exactly what
// scratch_bytes() will be.
std::uint64_t estimate_weight_bytes(const Checkpoint& checkpoint);
std::uint64_t activation_bytes(const ModelConfig& c, std::int64_t max_rows);

// Rotary frequencies [rotary / 2] of a configuration, in the reference's fp32 (with llama3 scaling
// as published with Llama 3.1: wavelengths beyond original / low are divided by `factor`, those
// below original / high kept, those between interpolated).
std::vector<float> rope_frequencies(const ModelConfig& c);
// cos and sin of position * frequency, [rows, rotary / 2, 2].
void rope_table(std::span<const float> frequencies, std::span<const RowPlace> rows, float* out);

}  // namespace nibble
