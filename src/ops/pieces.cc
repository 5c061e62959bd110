#include "ops/pieces.h"

#include <algorithm>

#include "base/error.h"

namespace nibble {

std::int64_t piece_begin(std::int64_t k, int pieces, int i) {
  const std::int64_t chunks = (k + kChunk - 1) / kChunk;
  return std::min(k, i * chunks / pieces * kChunk);
}

KPlan plan_k(std::int64_t k, int group, int pieces) {
  require(k > 0 && k < (std::int64_t{1} << 31) - kChunk, "[linear] expected 0 < K < 2^31, got {}",
          k);
  require(pieces == 1 || pieces == 2 || pieces == 4 || pieces == 8,
          "[linear] expected 1, 2, 4 or 8 pieces, got {}", pieces);
  require(group == 0 || (group % kChunk == 0 && k % group == 0),
          "[linear] expected a group that is a multiple of 32 and divides K, got K {} group {}", k,
          group);
  KPlan p{.k = k, .padded_k = (k + kChunk - 1) / kChunk * kChunk, .pieces = pieces};
  for (int i = 0; i < pieces; ++i) {
    const std::int32_t before = p.blocks;
    const auto first = static_cast<std::int32_t>((piece_begin(k, pieces, i) + kChunk - 1) / kChunk);
    const auto last =
        static_cast<std::int32_t>((piece_begin(k, pieces, i + 1) + kChunk - 1) / kChunk);
    for (std::int32_t c = first; c < last; ++c) {
      const bool new_block = (c - first) % (kBlock / kChunk) == 0;
      if (new_block) p.block_chunk.push_back(c), ++p.blocks;
      const std::int32_t g = group == 0 ? 0 : c / (group / kChunk);
      if (!new_block && p.units.back().group == g)
        ++p.units.back().chunks;
      else
        p.units.push_back({c, 1, g, p.blocks - 1, i, 0});
    }
    auto unit = p.units.rbegin();
    for (int blocks = p.blocks - before, s = segment_count(blocks) - 1; blocks > 0 && s >= 0; --s) {
      while (unit->block - before >= segment_end(blocks, s)) ++unit;
      unit->closes = 1;
    }
  }
  p.block_chunk.push_back(static_cast<std::int32_t>(p.padded_k / kChunk));
  return p;
}

}  // namespace nibble
