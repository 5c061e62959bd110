#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "base/half.h"

namespace nibble::cpu {

CpuKvCache::CpuKvCache(const KvShape& s) : KvCache(s) {
  const auto positions = static_cast<std::size_t>(s.layers * s.slots * s.kv_heads * s.padded_context());
  keys_ = {positions * static_cast<std::size_t>(s.head_dim) * element(), "the KV cache"};
  values_ = {positions * static_cast<std::size_t>(stride()) * element(), "the KV cache"};
  // What lies past a sequence's end is read and masked: it must be finite, and is (zeros, or an
  // earlier sequence's values).
}

const void* CpuKvCache::keys(std::int64_t layer, std::int64_t slot, std::int64_t head) const {
  return keys_.data() + static_cast<std::size_t>(head_index(layer, slot, head) * shape_.padded_context() *
                                                 shape_.head_dim) * element();
}
const void* CpuKvCache::values(std::int64_t layer, std::int64_t slot, std::int64_t head) const {
  return values_.data() +
         static_cast<std::size_t>(head_index(layer, slot, head) * shape_.padded_context() * stride()) * element();
}

void CpuKvCache::write(std::int64_t layer, std::int64_t slot, std::int64_t head, std::int64_t position,
                       const void* k, const void* v) {
  const std::int64_t hd = shape_.head_dim, key = position / 16 * 16 * hd + position % 16;
  const auto store = [&](auto* keys, auto* values, const auto* kin) {
    for (std::int64_t d = 0; d < hd; ++d) keys[key + d * 16] = kin[d];
    std::memcpy(values + position * stride(), v, static_cast<std::size_t>(stride()) * sizeof *values);
  };
  void* ks = const_cast<void*>(keys(layer, slot, head));
  void* vs = const_cast<void*>(values(layer, slot, head));
  if (shape_.type == KvType::F16)
    store(static_cast<std::uint16_t*>(ks), static_cast<std::uint16_t*>(vs), static_cast<const std::uint16_t*>(k));
  else
    store(static_cast<float*>(ks), static_cast<float*>(vs), static_cast<const float*>(k));
}

void CpuKvCache::read(std::int64_t layer, std::int64_t slot, std::int64_t head, std::int64_t position, float* k,
                      float* v) const {
  const std::int64_t hd = shape_.head_dim;
  const std::int64_t key = position / 16 * 16 * hd + position % 16, value = position * stride();
  const auto load = [&](const auto* keys, const auto* values, auto convert) {
    for (std::int64_t d = 0; d < hd; ++d) k[d] = convert(keys[key + d * 16]), v[d] = convert(values[value + d]);
  };
  const void* ks = keys(layer, slot, head);
  const void* vs = values(layer, slot, head);
  if (shape_.type == KvType::F16)
    load(static_cast<const std::uint16_t*>(ks), static_cast<const std::uint16_t*>(vs), half_to_float);
  else
    load(static_cast<const float*>(ks), static_cast<const float*>(vs), [](float x) { return x; });
}

}  // namespace nibble::cpu
