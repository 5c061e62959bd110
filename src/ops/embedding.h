// embedding: h[i] = row ids[i] of the embedding matrix, as fp32 [M, K].
// The matrix may be the (tied) head's own packed weight. h is apart from ids.
#pragma once
#include <cstdint>

#include "ops/linear.h"

namespace nibble {

struct EmbeddingArgs {
  const std::int32_t* ids = nullptr;  // [M] on the host, each in [0, N)
  const Weight* w = nullptr;          // [N, K]
  std::int64_t m = 0;
  float* h = nullptr;  // [M, K]
};

inline void check(const EmbeddingArgs& a) {
  require(a.m > 0 && a.ids != nullptr && a.w != nullptr && a.h != nullptr,
          "[embedding] expected ids, a matrix and an output, got null");
  for (std::int64_t i = 0; i < a.m; ++i)
    require(a.ids[i] >= 0 && a.ids[i] < a.w->format().n,
            "[embedding] expected ids below {}, got {}", a.w->format().n, a.ids[i]);
}

}  // namespace nibble
