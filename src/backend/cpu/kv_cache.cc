#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"

namespace nibble::cpu {

CpuKvCache::CpuKvCache(const KvShape& s) : KvCache(s) {
  const auto positions =
      static_cast<std::size_t>(s.layers * s.slots * s.kv_heads * s.padded_context());
  keys_ = {positions * static_cast<std::size_t>(s.head_dim) * element(), "the KV cache"};
  values_ = {positions * static_cast<std::size_t>(stride()) * element(), "the KV cache"};
  if (s.type == KvType::I16)
    key_scales_ = {positions, "the KV cache"}, value_scales_ = {positions, "the KV cache"};
}

const void* CpuKvCache::keys(std::int64_t layer, std::int64_t slot, std::int64_t head) const {
  return keys_.data() + static_cast<std::size_t>(head_index(layer, slot, head) *
                                                 shape_.padded_context() * shape_.head_dim) *
                            element();
}
const void* CpuKvCache::values(std::int64_t layer, std::int64_t slot, std::int64_t head) const {
  return values_.data() + static_cast<std::size_t>(head_index(layer, slot, head) *
                                                   shape_.padded_context() * stride()) *
                              element();
}

void CpuKvCache::write(const Kernels& kernels, std::int64_t layer, std::int64_t slot,
                       std::int64_t head, std::int64_t position, const float* k, const float* v) {
  const std::int64_t hd = shape_.head_dim, key = position / 16 * 16 * hd + position % 16,
                     value = position * stride();
  void* ks = const_cast<void*>(keys(layer, slot, head));
  void* vs = const_cast<void*>(values(layer, slot, head));
  if (shape_.type == KvType::F32) {
    for (std::int64_t d = 0; d < hd; ++d) static_cast<float*>(ks)[key + d * 16] = k[d];
    std::copy_n(v, stride(), static_cast<float*>(vs) + value);
    return;
  }
  std::int16_t rounded[512];  // check() bounds head_dim
  const std::int64_t at = head_index(layer, slot, head) * shape_.padded_context() + position;
  kernels.to_int16(k, stride(), rounded, key_scales_.data() + at);
  for (std::int64_t d = 0; d < hd; ++d) static_cast<std::int16_t*>(ks)[key + d * 16] = rounded[d];
  kernels.to_int16(v, stride(), static_cast<std::int16_t*>(vs) + value, value_scales_.data() + at);
}

void CpuKvCache::copy(std::int64_t from, std::int64_t to, std::int64_t n) {
  const auto vectors = static_cast<std::size_t>((n + 15) / 16 * 16);  // keys lie 16 together
  const auto bytes = [&](std::int64_t width) {
    return vectors * static_cast<std::size_t>(width) * element();
  };
  for (std::int64_t layer = 0; layer < shape_.layers; ++layer)
    for (std::int64_t head = 0; head < shape_.kv_heads; ++head) {
      const auto move = [&](const void* src, const void* dst, std::size_t size) {
        std::memcpy(const_cast<void*>(dst), src, size);
      };
      move(keys(layer, from, head), keys(layer, to, head), bytes(shape_.head_dim));
      move(values(layer, from, head), values(layer, to, head), bytes(stride()));
      if (shape_.type != KvType::I16) continue;
      move(key_scales(layer, from, head), key_scales(layer, to, head), vectors * sizeof(float));
      move(value_scales(layer, from, head), value_scales(layer, to, head), vectors * sizeof(float));
    }
}

void CpuKvCache::read(std::int64_t layer, std::int64_t slot, std::int64_t head,
                      std::int64_t position, float* k, float* v) const {
  const std::int64_t hd = shape_.head_dim, key = position / 16 * 16 * hd + position % 16,
                     value = position * stride();
  const auto load = [&](const auto* keys, const auto* values, float ks, float vs) {
    for (std::int64_t d = 0; d < hd; ++d)
      k[d] = static_cast<float>(keys[key + d * 16]) * ks,
      v[d] = static_cast<float>(values[value + d]) * vs;
  };
  const void* ks = keys(layer, slot, head);
  const void* vs = values(layer, slot, head);
  if (shape_.type == KvType::F32)
    load(static_cast<const float*>(ks), static_cast<const float*>(vs), 1.0f, 1.0f);
  else
    load(static_cast<const std::int16_t*>(ks), static_cast<const std::int16_t*>(vs),
         key_scales(layer, slot, head)[position], value_scales(layer, slot, head)[position]);
}

}  // namespace nibble::cpu
