// Rows -> tiles: every 16 bytes of a tile by one thread, from at most four places of the rows.
#include <algorithm>

#include "backend/cuda/device.h"
#include "backend/cuda/pack.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kThreads = 256, kPart = 16;  // bytes

// Part `part` of stage `s`, of rows from `rows` on, of which there are `count`.
__device__ uint4 part_of(const PackArgs& a, const Stage& s, const std::uint8_t* rows, int count,
                         int part) {
  std::uint32_t word[4] = {};
  if (a.w.type <= kInt8) {
    const int lane = part % 32, group = lane / 4, t = lane % 4;
    const bool bytes = a.w.type == kInt8;
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8, chunk = bytes ? part / 32 : i / 2;
      const int at = bytes ? s.column + chunk * 32 + i / 2 * 16 : s.column / 2 + chunk * 16;
      if (row < count && chunk < s.chunks)
        word[i] = *reinterpret_cast<const std::uint32_t*>(rows + row * a.row_bytes + at + 4 * t);
    }
  } else {
    const int size = a.w.type == kF32 ? 4 : 2, row = part % kTile, in_stage = part / kTile * kPart;
    const int at = s.column * size + in_stage;
    if (row < count && in_stage < s.chunks * 32 * size && at < a.row_bytes)
      return *reinterpret_cast<const uint4*>(rows + row * a.row_bytes + at);
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// Scale `row` of a tile's group, or 0; T: as wide as one.
template <class T>
__device__ void copy_scale(const PackArgs& a, int tile, int group, int row, bool exists) {
  const int lists = a.w.type == kInt4Aff ? 2 : 1;
  const std::int64_t rows = static_cast<std::int64_t>(a.tiles) * kTile, each = rows * a.w.groups;
  const T* from = reinterpret_cast<const T*>(a.rows + rows * a.row_bytes) +
                  (static_cast<std::int64_t>(tile) * kTile + row) * a.w.groups + group;
  T* to = reinterpret_cast<T*>(a.scales) + ((a.first + tile) * a.w.groups + group) * lists * kTile +
          scale_place(row);
  for (int i = 0; i < lists; ++i) to[i * kTile] = exists ? from[i * each] : T{0};
}

__global__ void __launch_bounds__(kThreads) pack_rows(const __grid_constant__ PackArgs a) {
  start_next(), await_last();
  const int parts = a.w.stage_bytes / kPart, codes = a.tiles * a.w.stages * parts,
            records = a.w.record_bytes > 0 ? a.tiles * a.w.groups * kTile : 0,
            step = static_cast<int>(gridDim.x) * kThreads;
  const auto count = [&](int tile) {  // of its rows
    const int left = a.w.n - static_cast<int>((a.first + tile) % a.w.tiles) * kTile;
    return left < kTile ? left : kTile;
  };
  auto* const to = reinterpret_cast<uint4*>(a.codes) + a.first * a.w.stages * parts;
  const int thread = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  for (int i = thread; i < codes; i += step) {
    const int tile = i / parts / a.w.stages, stage = i / parts % a.w.stages;
    to[i] =
        part_of(a, a.w.plan[stage], a.rows + tile * kTile * a.row_bytes, count(tile), i % parts);
  }
  for (int i = thread; i < records; i += step) {
    const int row = i / a.w.groups % kTile, tile = i / a.w.groups / kTile, group = i % a.w.groups;
    if (a.w.scale_bytes == 2)
      copy_scale<std::uint16_t>(a, tile, group, row, row < count(tile));
    else
      copy_scale<float>(a, tile, group, row, row < count(tile));
  }
}

}  // namespace

void launch_pack(const Queue& q, const PackArgs& a) {
  const std::int64_t parts =
      static_cast<std::int64_t>(a.tiles) * a.w.stages * (a.w.stage_bytes / kPart);
  const auto needed = static_cast<int>((parts + kThreads - 1) / kThreads);
  const int blocks = q.blocks > 0 ? q.blocks : 8 * q.multiprocessors;
  launch<Begin::Late>(q, "pack", pack_rows, dim3{static_cast<unsigned>(std::min(needed, blocks))},
                      kThreads, 0, a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
