// What sequences leave on the device: KV cache, convolution and recurrent state.
#pragma once
#include "backend/cuda/cuda_backend.h"

namespace nibble::NIBBLE_CUDA_NS {

class CudaKvCache final : public KvCache {
 public:
  CudaKvCache(const KvShape& s, const Queue& q, Arena& arena);
  void read(std::int64_t layer, std::int64_t slot, std::int64_t head, std::int64_t position,
            float* k, float* v) const override;
  void copy(std::int64_t from, std::int64_t to, std::int64_t n) override;
  KvLayer layer(std::int64_t layer) const;

 private:
  std::size_t element() const { return shape_.type == KvType::I16 ? 2 : 4; }
  // Number of a head's first vector.
  std::size_t vector_at(std::int64_t layer, std::int64_t slot, std::int64_t head) const;
  const Queue& q_;  // the backend's
  Block keys_, values_, key_scales_, value_scales_, arrived_;
};

class CudaDeltaState final : public DeltaState {
 public:
  CudaDeltaState(const DeltaShape& s, const Queue& q, Arena& arena);
  void copy(std::int64_t from, std::int64_t to) override;
  void read(std::int64_t layer, std::int64_t slot, std::int64_t head, float* s) const override;
  DeltaLayer layer(std::int64_t layer) const;

 private:
  std::int64_t blocks() const { return (shape_.value_dim + kTile - 1) / kTile; }  // of a head
  std::size_t conv_size() const;  // floats of a slot
  std::size_t rule_size() const;
  const Queue& q_;
  Block conv_, rule_;
};

}  // namespace nibble::NIBBLE_CUDA_NS
