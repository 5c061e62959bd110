// rope_cache, attention and the KV cache.
#include <algorithm>
#include <atomic>
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

std::unique_ptr<KvCache> CpuBackend::make_kv_cache(const KvShape& shape) {
  return std::make_unique<CpuKvCache>(shape);
}

void CpuBackend::rope_cache(const RopeCacheArgs& a) {
  check(a);
  auto& cache = static_cast<CpuKvCache&>(*a.cache);
  const KvShape& s = cache.shape();
  const std::int64_t hd = s.head_dim, heads = a.heads + s.kv_heads, stride = cache.stride(),
                     q_pitch = a.q_pitch > 0 ? a.q_pitch : hd;
  const float offset = a.unit_offset ? 1.0f : 0.0f;
  pool_.run([&](int thread) {
    float *k = scratch(thread, 2 * stride), *v = k + stride;
    const Part p = part(a.m * heads, thread, pool_.size());
    for (std::int64_t task = p.begin; task < p.end; ++task) {
      const std::int64_t i = task / heads, h = task % heads;
      const float* cos_sin = a.cos_sin + i * a.rotary;
      if (h < a.heads) {
        const std::int64_t at = i * a.heads + h;
        kernels_.rope(a.q + at * q_pitch, hd, a.q_norm, offset, a.eps, cos_sin, a.rotary,
                      a.q_out + at * hd);
        continue;
      }
      const std::int64_t head = h - a.heads, at = (i * s.kv_heads + head) * hd;
      std::fill_n(k, 2 * stride, 0.0f);
      kernels_.rope(a.k + at, hd, a.k_norm, offset, a.eps, cos_sin, a.rotary, k);
      std::copy_n(a.v + at, hd, v);
      cache.write(kernels_, a.layer, a.rows[i].slot, head, a.rows[i].position, k, v);
    }
  });
}

void CpuBackend::attention(const AttentionArgs& a) {
  check(a);
  refuse_half("attention", a.activations);
  const auto& cache = static_cast<const CpuKvCache&>(*a.cache);
  const KvShape& s = cache.shape();
  const std::int64_t hd = s.head_dim, pitch = cache.stride() + 2, ratio = a.heads / s.kv_heads;
  std::int64_t longest = 0;
  for (std::int64_t i = 0; i < a.m; ++i)
    longest = std::max<std::int64_t>(longest, a.rows[i].position + 1);
  const std::int64_t splits = (longest + kAttentionSplit - 1) / kAttentionSplit,
                     heads = a.m * a.heads;
  const auto row_splits = [&](std::int64_t i) {
    return (a.rows[i].position + kAttentionSplit) / kAttentionSplit;
  };
  // Few rows over a long past: splits are tasks of their own, combined in a second pass. Otherwise
  // a task has all splits. Heads that share keys are one task unless that leaves threads idle:
  // about half of a lone head's time is loading, which they do once. Whatever is a task, each
  // head's splits, and their order, are the same.
  const bool spread = splits > 1 && heads < 4 * pool_.size();
  const auto turns = [&](std::int64_t group) {
    return (heads / group * (spread ? splits : 1) + pool_.size() - 1) / pool_.size();
  };
  const std::int64_t group = turns(ratio) * (1 + ratio) <= 2 * turns(1) ? ratio : 1,
                     groups = a.heads / group;
  const auto attend = [&](std::int64_t i, std::int64_t g, std::int64_t split, float* out) {
    const std::int64_t end = a.rows[i].position + 1, begin = split * kAttentionSplit,
                       kv = g * group / ratio;
    kernels_.attention({group, a.q + (i * a.heads + g * group) * hd,
                        cache.keys(a.layer, a.rows[i].slot, kv),
                        cache.values(a.layer, a.rows[i].slot, kv), hd, cache.stride(), begin,
                        std::min(end, begin + kAttentionSplit), a.scale, s.type == KvType::I16,
                        cache.key_scales(a.layer, a.rows[i].slot, kv),
                        cache.value_scales(a.layer, a.rows[i].slot, kv), out, splits * pitch});
  };
  struct alignas(64) {  // a line of its own: all else here is read by every thread
    std::atomic<std::int64_t> next{0};
  } counter;
  auto& next = counter.next;
  const std::int64_t tasks = a.m * groups, parts = group * splits * pitch;
  if (spread) {
    partials_.resize(static_cast<std::size_t>(heads * splits * pitch));
    pool_.run([&](int) {
      for (std::int64_t t; (t = next.fetch_add(1)) < tasks * splits;) {
        const std::int64_t at = t / splits, split = t % splits;
        if (split < row_splits(at / groups))
          attend(at / groups, at % groups, split, partials_.data() + at * parts + split * pitch);
      }
    });
    next = 0;
  }
  pool_.run([&](int thread) {
    float* own = spread ? nullptr : scratch(thread, parts);
    for (std::int64_t t; (t = next.fetch_add(1)) < tasks;) {
      const std::int64_t i = t / groups;
      if (!spread)
        for (std::int64_t sp = 0; sp < row_splits(i); ++sp)
          attend(i, t % groups, sp, own + sp * pitch);
      for (std::int64_t h = 0; h < group; ++h) {
        const std::int64_t at = t * group + h;
        const float* gate = a.gate != nullptr ? a.gate + at * a.gate_pitch : nullptr;
        kernels_.combine((spread ? partials_.data() + t * parts : own) + h * splits * pitch,
                         row_splits(i), pitch, hd, gate, a.out + at * hd);
      }
    }
  });
}

}  // namespace nibble::cpu
