#include "ops/pieces.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

// Every unit is in one segment, a segment in one piece; a piece has as many as it should, of four
// blocks at least, and each ends where segment_after() says.
TEST(Pieces, SegmentsOfAPlan) {
  for (const int pieces : {1, 2, 8})
    for (std::int64_t k = 32; k <= 20000; k += k < 3000 ? 32 : 992) {
      const KPlan p = plan_k(k, 32, pieces);
      std::vector<int> blocks(static_cast<std::size_t>(pieces)), closed(blocks), first(blocks);
      for (const Unit& u : p.units) blocks[static_cast<std::size_t>(u.piece)] = 0;
      int last = -1;
      for (const Unit& u : p.units) {
        if (u.block == last) continue;
        last = u.block;
        if (blocks[static_cast<std::size_t>(u.piece)]++ == 0)
          first[static_cast<std::size_t>(u.piece)] = u.block;
      }
      for (std::size_t i = 0; i < p.units.size(); ++i) {
        const Unit& u = p.units[i];
        const auto piece = static_cast<std::size_t>(u.piece);
        const int at = u.block - first[piece];
        const bool ends_block = i + 1 == p.units.size() || p.units[i + 1].block != u.block;
        ASSERT_EQ(u.closes == 1, ends_block && segment_after(at, blocks[piece]) == at + 1)
            << k << " " << pieces << " " << i;
        closed[piece] += u.closes;
      }
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        if (blocks[i] == 0) continue;
        ASSERT_EQ(closed[i], segment_count(blocks[i])) << k << " " << pieces;
        ASSERT_TRUE(closed[i] <= 8 && (closed[i] == 1 || closed[i] * 4 <= blocks[i]));
      }
    }
}

}  // namespace
}  // namespace nibble
