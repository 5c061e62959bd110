// What the kernels of many rows share: which rows and tiles are a block's, and where the sums of
// its threads go. Of several pieces each one's sums wait in memory, where their own thread adds
// them at the end.
#pragma once
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {

struct Where {
  const Product* o;  // null: no such tile
  int tile;
};
__device__ __forceinline__ Where where(const MultiplyArgs& a, int job) {
  int out = 0;
  while (out < a.outputs && job >= a.out[out].w.tiles) job -= a.out[out++].w.tiles;
  return {out < a.outputs ? &a.out[out] : nullptr, job};
}
__device__ __forceinline__ Where where_pair(const MultiplyArgs& a, int job, int which) {
  return {job < a.jobs ? &a.out[which] : nullptr, job};
}

// Rows of x and y of a block: `each` that follow each other, or of a mixture the pairs of one
// expert.
struct BlockRows {
  int row0, rows, matrix = 0, pairs;
  const int* order = nullptr;
  __device__ __forceinline__ explicit BlockRows(const MultiplyArgs& a,
                                                int block = static_cast<int>(blockIdx.x),
                                                int each = kGemmRows)
      : row0(block * each), rows(a.m - row0), pairs(a.pairs) {
    if (a.groups == nullptr) return;
    const RowGroup group = a.groups[block];
    order = a.order + group.begin, rows = group.rows, matrix = group.matrix, row0 = 0;
  }
  // Row r of the block; past the end another one's, for nobody.
  __device__ __forceinline__ int y(int r) const {
    const int i = r < rows ? r : rows - 1;
    return order != nullptr ? order[i] : row0 + i;
  }
  __device__ __forceinline__ std::int64_t x(int r) const {
    return order != nullptr ? y(r) / pairs : y(r);
  }
};
__device__ __forceinline__ bool has_rows(const MultiplyArgs& a) {
  return a.groups == nullptr || static_cast<int>(blockIdx.x) < *a.task_count;
}

// A tile's codes and scales, + 16 lane; of no tile: others', for nobody.
struct TileBytes {
  const std::uint8_t *codes, *scales;
  __device__ __forceinline__ TileBytes(const MultiplyArgs& a, const Where& p, int matrix) {
    const Matrix& w = p.o != nullptr ? p.o->w : a.out[0].w;
    const std::int64_t at =
        p.o != nullptr ? static_cast<std::int64_t>(matrix) * w.tiles + p.tile : 0;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    codes = w.codes + at * w.stages * w.stage_bytes + lane * 16;
    scales = w.scales + at * w.groups * w.record_bytes + lane * 16;
  }
};

__device__ __forceinline__ float* sum_of_piece(const MultiplyArgs& a, int row, int piece, int n) {
  return a.piece_sums + (static_cast<std::int64_t>(row) * kMaxPieces + piece) * a.out[0].ldy + n;
}
__device__ __forceinline__ float add_pieces(const MultiplyArgs& a, int row, int n) {
  const int pieces = a.out[0].w.pieces;
  float p[kMaxPieces];
#pragma unroll
  for (int i = 0; i < kMaxPieces; ++i) p[i] = i < pieces ? *sum_of_piece(a, row, i, n) : 0.0f;
  const float left = (p[0] + p[1]) + (p[2] + p[3]), right = (p[4] + p[5]) + (p[6] + p[7]);
  return pieces == 8 ? left + right : pieces == 4 ? left : p[0] + p[1];
}

inline unsigned gemm_row_blocks(const MultiplyArgs& a) {
  return static_cast<unsigned>(a.groups != nullptr ? a.max_tasks
                                                   : (a.m + kGemmRows - 1) / kGemmRows);
}

// Fp32 sums of one thread, of the segment at hand and of those before. The latter lie Far, in
// shared memory, and leave registers to the products, where there is room.
template <int Values, int Threads, bool Far>
struct Sums {
  static constexpr std::size_t kFarBytes = Far ? sizeof(float) * Values * Threads : 0;
  float acc[Values] = {};
  float near_[Far ? 1 : Values];
  float* far;  // + thread
  bool empty = true;
  __device__ __forceinline__ explicit Sums(char* shared)
      : far(reinterpret_cast<float*>(shared) + threadIdx.x) {}
  __device__ __forceinline__ float& segment(int i) { return Far ? far[i * Threads] : near_[i]; }
  __device__ __forceinline__ float sum(int i) { return empty ? 0.0f : segment(i); }
  __device__ __forceinline__ void close_segment() {
#pragma unroll
    for (int i = 0; i < Values; ++i) {
      segment(i) = sum(i) + acc[i];
      acc[i] = 0;
    }
    empty = false;
  }
};

}  // namespace nibble::NIBBLE_CUDA_NS
