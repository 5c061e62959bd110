// What a launch of gemv.cuh asks for, a warp's stream of weights through its two slots, and what a
// stage adds.
#pragma once
#include "backend/cuda/divider.h"
#include "backend/cuda/rows.cuh"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr int kCodeBytes = 512, kScaleBytes = 32;  // of a stage, of a group
// A warp has two slots of this many stages, one in use, the other on its way.
inline constexpr int kLongSlot = 5, kShortSlot = 3;
// groups: that a stage has scales of, 1 or (groups of 32) 2.
constexpr int slot_bytes(int stages, int groups) {
  return stages * (kCodeBytes + groups * kScaleBytes);
}

// Two streams' blocks must not lie on one multiprocessor while another has none: where not all can
// take one at once (blocks of the last launch, if that was no stream, leave some no room for two; a
// stream's leave none for one), they would come to those that are free first. The bytes to ask for.
inline std::size_t alone(const Queue& q, std::size_t shared) {
  constexpr std::size_t kReserved = 1024;  // by the driver, a block
  const std::size_t half = q.shared_total / 2 - kReserved;
  const bool two = shared <= half && (q.stream_bytes == 0 || q.stream_bytes + shared > 2 * half);
  return two ? half + 16 : shared;
}

// Where a lane finds the block's rows, `stages` each, meta `pitch` apart. x: column 8 o + lane / 4
// of B (limb, row of x); y: rows 4 o + lane % 4, whose sums it holds. Where there is no such row:
// another's, for nobody.
template <int Octets>
__device__ __forceinline__ void find_rows(const char* words, const RowMeta* meta, int m, int stages,
                                          int pitch, const uint4* (&x)[Octets],
                                          const RowMeta* (&y)[Octets]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int o = 0; o < Octets; ++o) {
    int in = 4 * o + lane / 8, of = 4 * o + lane % 4;
    in = in < m ? in : 0, of = of < m ? of : 0;
    x[o] = reinterpret_cast<const uint4*>(words) + in * stages * 8 + lane / 4 % 2 * 4 + lane % 4;
    y[o] = meta + of * pitch;
  }
}

// A stage of a tile. codes: + 16 lane; scales: of this lane's two rows; x and y: of this lane.
template <int Octets, int Groups>
__device__ __forceinline__ void add_stage(const char* codes, const char* scales,
                                          const uint4* const (&x)[Octets],
                                          const RowMeta* const (&y)[Octets], int s,
                                          float (&acc)[Octets][2]) {
  constexpr std::uint32_t kLow = 0x0f0f0f0f;
  const uint4 v = *reinterpret_cast<const uint4*>(codes);
  const std::uint32_t w[8] = {v.x & kLow, v.y & kLow, v.x >> 4 & kLow, v.y >> 4 & kLow,
                              v.z & kLow, v.w & kLow, v.z >> 4 & kLow, v.w >> 4 & kLow};
  float low[Groups], high[Groups];
#pragma unroll
  for (int g = 0; g < Groups; ++g) {
    const std::uint32_t scale = *reinterpret_cast<const std::uint32_t*>(scales + g * kScaleBytes);
    low[g] = from_half(static_cast<std::uint16_t>(scale));
    high[g] = from_half(static_cast<std::uint16_t>(scale >> 16));
  }
#pragma unroll
  for (int o = 0; o < Octets; ++o) {
    const uint4 b = x[o][8 * s];
    const RowMeta of = y[o][s];
    int c[Groups][4] = {};  // the offset comes after: here it would take four registers
    mma_u8s8(c[0], w[0], w[1], w[2], w[3], b.x, b.y);
    mma_u8s8(c[Groups - 1], w[4], w[5], w[6], w[7], b.z, b.w);
#pragma unroll
    for (int g = 0; g < Groups; ++g) {
      const int offset = Groups == 1 ? of.minus8 : -8 * of.sum[g];
      acc[o][0] =
          fmaf(static_cast<float>(c[g][0] * 256 + offset + c[g][1]), low[g] * of.scale, acc[o][0]);
      acc[o][1] =
          fmaf(static_cast<float>(c[g][2] * 256 + offset + c[g][3]), high[g] * of.scale, acc[o][1]);
    }
  }
}

// Stages on their way into a slot; all + 16 lane, scales: of group lane / 2, + 16 (lane % 2).
template <int Slot, int Groups>
__device__ __forceinline__ void bring_stages(char* slot, const std::uint8_t* codes,
                                             const std::uint8_t* scales, int stages,
                                             ReadOnce once) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < Slot; ++j)
    if (j < stages) copy_async16(slot + j * kCodeBytes, codes + j * kCodeBytes, once);
  if (lane < 2 * Groups * stages) copy_async16(slot + Slot * kCodeBytes, scales, once);
}
// A slot's stages, in order: add(j).
template <int Slot, class F>
__device__ __forceinline__ void each_stage(int stages, F&& add) {
  if (stages == Slot) {
#pragma unroll
    for (int j = 0; j < Slot; ++j) add(j);
  } else if (stages == Slot - 1) {
#pragma unroll
    for (int j = 0; j < Slot - 1; ++j) add(j);
  } else {
#pragma unroll 1
    for (int j = 0; j < stages; ++j) add(j);
  }
}

struct Output {
  const std::uint8_t *codes, *scales;
  const float* bias;
  float* y;
  std::int64_t ldy;
  int n, first;  // first: job
};

// Small: a launch's arguments come from memory.
struct GemvArgs {
  Source source;
  Fixed fixed;
  const Task* tasks;
  const int* task_count;
  const int* ids;
  Output out[kMaxOutputs];
  int outputs, m, int8, swiglu, pieces;  // pieces: y [row][piece][ldy]
  int others, other_matrix;
  int picks, experts, x_step;  // of ids; x_step: row of x of a task, 0 or as of y
  // What the matrices share.
  int stages, groups, group_shift, tree, parts, part_end[kMaxPieces];
  // How a block divides the work: jobs of a matrix, items of a task, rows of x of an item.
  int team_warps, jobs, task_items, width, round_items, copy_rows, meta_pitch;
  int all_jobs;  // not of tasks
  Divider by_task_items, by_blocks;
  int parts_of_warp;  // whose sums stay apart
  int known;          // tasks or ids are complete when this launch's blocks come
  // > 0: two teams share a block's last item where it has an odd number, this many segments of each
  // piece being the second one's.
  int split;
  Choice choice;
  int ahead;  // stages that a warp asks the second cache for before it waits for x
  ConvArgs conv;
  int team_shift;  // team_warps: 1 << team_shift
  // gemv_whole: of a block; blocks that have one more, the first; its columns of the row to store.
  int jobs_each, jobs_more, columns;
};

// The segments of one warp: of a piece, its own; of several parts, these; else one. Of an item that
// two teams share, the first team's and the second one's, whose sums stay apart.
struct Segments {
  int begin, count, end[kMaxPieces];  // stages
  int unused[2];
};
enum Share : int { kWhole, kFirstHalf, kSecondHalf, kShares };
inline constexpr int kMaxHalf = kMaxPieces / 2;
__device__ __forceinline__ int share_of(int item, int split) {
  return (item >= split) + (item > split);
}

// Where a tile of 16 rows of W lies.
struct TilePlace {
  const Output* out;
  std::int64_t at;  // tiles before it in out's codes and scales
};
template <bool Chosen>
__device__ __forceinline__ TilePlace place_of(const GemvArgs& a, const Output* outputs, int item) {
  int matrix = 0, out = 0, tile = item;
  if constexpr (Chosen) {
    const int task = a.by_task_items.of(item);
    tile = item - task * a.task_items;
    if (a.tasks != nullptr) {
      matrix = load_fresh(&a.tasks[task].matrix);
    } else {
      matrix = task < a.picks ? load_fresh(a.ids + task) : a.other_matrix;
      if (task < a.picks && (matrix < 0 || matrix >= a.experts)) matrix = 0;
    }
    if (matrix == a.other_matrix) matrix = 0, out = a.others;
  }
  if (a.swiglu)
    out += tile % 2, tile /= 2;
  else
    while (out + 1 < a.outputs && tile >= outputs[out + 1].first) ++out;
  const Output& o = outputs[out];
  return {&o, static_cast<std::int64_t>(matrix) * a.jobs + tile - o.first};
}

// Between the end of a launch's stream and the start of the next one's lie 5 us in which memory
// would rest: the last sums, the wait for them, the norm. So a warp asks for the a.ahead stages of
// its items, first .. last of each, that follow the `held` ones of its slots: a lane an item.
template <int Groups, bool Chosen>
__device__ __forceinline__ void ask_ahead(const GemvArgs& a, const Output* outputs, int item,
                                          int step, int end, int first, int last, int held) {
  const int lane = static_cast<int>(threadIdx.x) % 32, all = last - first;
  if (held > all) held = all;
  const int from = first + (lane == 0 ? held : 0), before = lane == 0 ? 0 : lane * all - held;
  int count = a.ahead - before;
  if (count > last - from) count = last - from;
  item += lane * step;
  if (count <= 0 || item >= end) return;
  const TilePlace p = place_of<Chosen>(a, outputs, item);
  prefetch(p.out->codes + (p.at * a.stages + from) * kCodeBytes, count * kCodeBytes);
  const int group = Groups * from >> a.group_shift,
            groups = ((Groups * (from + count) - 1) >> a.group_shift) + 1 - group;
  prefetch(p.out->scales + (p.at * a.groups + group) * kScaleBytes, groups * kScaleBytes);
}

// Where a warp's stream is, of what it looks at once an item: in shared memory, since registers
// that do not suffice go to local memory, and so, past a first cache that shared memory has made
// small, to the second. Each lane writes the same, once all have read, and reads it once all have
// written.
struct Course {
  int item, end, step, split, segment;
  int unused;
  const Segments* now;
};

// The runs of stages of one warp, in the order of their use: at most a slot's, of one segment. Of
// item `split` the first half; the item after it is the second half of the same.
template <int Slot, int Groups>
struct Stream {
  char* slot;          // + 16 lane
  int other, left, s;  // left: stages of the segment; 0: nothing is left at all; s: Groups a stage
  const std::uint8_t *codes, *scales;  // + 16 lane
  ReadOnce once;

  // own: of this warp, [share * kMaxPieces].
  template <bool Chosen>
  __device__ __forceinline__ void locate(const GemvArgs& a, const Output* outputs,
                                         const Segments* own, Course& at, int item) {
    const int split = at.split;
    const TilePlace p = place_of<Chosen>(a, outputs, item < split ? item : split);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const Segments* now = own + share_of(item, split) * kMaxPieces;
    const int first = now->begin;
    codes = p.out->codes + (p.at * a.stages + first) * kCodeBytes + lane * 16;
    scales = p.out->scales + p.at * a.groups * kScaleBytes + lane % 2 * 16;
    s = first * Groups + lane / 2, left = now->end[0] - first;
    at.segment = 0, at.now = now;
  }
  template <bool Chosen>
  __device__ __forceinline__ void bring(const GemvArgs& a, const Output* outputs,
                                        const Segments* own, Course& at) {
    if (left > 0) {
      const int stages = left < Slot ? left : Slot;
      bring_stages<Slot, Groups>(slot, codes, scales + (s >> a.group_shift) * kScaleBytes, stages,
                                 once);
      codes += stages * kCodeBytes, s += stages * Groups, left -= stages;
      if (left == 0) {
        const Segments* now = at.now;
        const int segment = at.segment + 1, item = at.item + at.step;
        warp_sync();  // all have read it
        if (segment < now->count) {
          at.segment = segment;
          left = now->end[segment] - now->end[segment - 1];
        } else {
          at.item = item;
          if (item < at.end) locate<Chosen>(a, outputs, own, at, item);
        }
      }
    }
    copy_async_commit();
    slot += other, other = -other;
  }
};

}  // namespace nibble::NIBBLE_CUDA_NS
