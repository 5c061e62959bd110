// top_logits: of each row of logits its largest, all that a sampler mostly needs: on a device a row
// of 248,320 need not come to the host.
//
//   values, ids [M, kTopLogits]: the largest first, the lowest id on a tie; -0 counts as 0. A row
//   of fewer ends with ids of -1. bad [M]: the lowest id whose logit is NaN or +Inf, or -1; where
//   there is one, values and ids are of no use.
// Outputs may be memory of Backend::alloc_host(), there after finish().
// Aliasing: outputs are apart from logits and from each other.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/error.h"

namespace nibble {

inline constexpr std::int64_t kTopLogits = 64;

struct TopLogitsArgs {
  const float* logits = nullptr;  // [M, N]
  std::int64_t m = 0, n = 0;
  float* values = nullptr;      // [M, kTopLogits]
  std::int32_t* ids = nullptr;  // [M, kTopLogits]
  std::int32_t* bad = nullptr;  // [M]
};

inline void check(const TopLogitsArgs& a) {
  require(a.logits != nullptr && a.values != nullptr && a.ids != nullptr && a.bad != nullptr,
          "[top_logits] expected logits and three outputs, got null");
  require(a.m > 0 && a.n > 0 && a.n < (std::int64_t{1} << 31),
          "[top_logits] expected rows of 1 to 2^31 - 1 logits, got {} of {}", a.m, a.n);
}

// One row, by a full order. values, ids: [kTopLogits]. Returns `bad`.
inline std::int32_t top_logits_reference(const float* logits, std::int64_t n, float* values,
                                         std::int32_t* ids) {
  std::int32_t bad = -1;
  std::vector<std::int32_t> order(static_cast<std::size_t>(n));
  for (std::int64_t i = n - 1; i >= 0; --i) {
    order[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
    if (!(logits[i] < std::numeric_limits<float>::infinity())) bad = static_cast<std::int32_t>(i);
  }
  if (bad >= 0) return bad;
  const std::int64_t kept = std::min(n, kTopLogits);
  std::partial_sort(order.begin(), order.begin() + kept, order.end(),
                    [&](std::int32_t a, std::int32_t b) {
                      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                    });
  for (std::int64_t i = 0; i < kTopLogits; ++i) {
    ids[i] = i < kept ? order[static_cast<std::size_t>(i)] : -1;
    values[i] = i < kept ? logits[ids[i]] + 0.0f : 0.0f;
  }
  return bad;
}

}  // namespace nibble
