// The sizes a model may claim: far above any published one, low enough that no product of two
// overflows and no allocation sized by one is absurd.
#pragma once
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "checkpoint/config.h"

namespace nibble::limits {

inline constexpr std::int64_t kWidth = 1 << 24, kVocab = 1 << 24, kLayers = 4096, kHeads = 1 << 16,
                              kExperts = 1 << 16, kHeadDim = 4096,
                              kPositions = std::int64_t{1} << 40;

inline void check_heads(const ModelConfig& m, std::string_view where) {
  require(m.heads % m.kv_heads == 0, "{}: {} attention heads are no multiple of {} KV heads", where,
          m.heads, m.kv_heads);
  require(m.head_dim > 0 && m.head_dim % 2 == 0,
          "{}: a head dimension of {} (an even number is needed for RoPE)", where, m.head_dim);
  require(m.heads * m.head_dim <= kWidth, "{}: {} heads of {} are too many", where, m.heads,
          m.head_dim);
}

}  // namespace nibble::limits
