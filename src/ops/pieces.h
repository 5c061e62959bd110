// How a linear operation walks K: the one shape rule every backend and shard shares.
//
// K is cut into chunks of 32 columns (the last may be short: padded with zeros). A row-parallel
// operation (o_proj, out_proj, down) cuts its chunks into 8 pieces, added as
// ((01)(23))((45)(67)), so that a tensor-parallel rank of degree 1, 2, 4 or 8 holds a subtree;
// every other operation has 1 piece. From the start of each piece, blocks of 64 columns share one
// activation scale. A unit is a longest run of 1 or 2 chunks inside one piece, one block and one
// weight group: its integer sum is exact. A piece's blocks are cut into segments, at least four
// blocks each and at most eight; the units of a segment are added in ascending order, and so are
// the segments: machines that sum them side by side and machines that do not get the same bits.
#pragma once
#include <cstdint>
#include <vector>

namespace nibble {

inline constexpr int kChunk = 32;  // columns
inline constexpr int kBlock = 64;  // columns that share an activation scale
inline constexpr int kRowParallelPieces = 8;

struct Unit {
  std::int32_t chunk = 0;   // first chunk
  std::int32_t chunks = 1;  // 1 or 2
  std::int32_t group = 0;   // weight group
  std::int32_t block = 0;   // activation block, counted over all pieces
  std::int32_t piece = 0;
  std::int32_t closes = 0;  // 1: the last of its segment
};

struct KPlan {
  std::int64_t k = 0;         // columns
  std::int64_t padded_k = 0;  // rounded up to kChunk
  int pieces = 1;
  std::int32_t blocks = 0;
  std::vector<Unit> units = {};
  std::vector<std::int32_t> block_chunk = {};  // [blocks + 1] first chunk of each block
};

// group: columns a weight scale covers (a multiple of 32), or 0 for plain weights.
// pieces: 1, 2, 4 or 8. Pieces may be empty when K is small.
KPlan plan_k(std::int64_t k, int group, int pieces);

// How many segments a piece of this many blocks has, and the block after its segment i.
constexpr int segment_count(int blocks) { return blocks < 8 ? 1 : blocks / 4 < 8 ? blocks / 4 : 8; }
constexpr int segment_end(int blocks, int i) { return blocks * (i + 1) / segment_count(blocks); }

// The end of the segment that holds block `at` of a piece.
constexpr int segment_after(int at, int blocks) {
  int i = at * segment_count(blocks) / blocks;
  while (segment_end(blocks, i) <= at) ++i;
  return segment_end(blocks, i);
}

// First column of piece i; piece_begin(k, pieces, pieces) == k.
std::int64_t piece_begin(std::int64_t k, int pieces, int i);

}  // namespace nibble
