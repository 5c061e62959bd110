// y = W x for up to 8 rows of x, symmetric INT4 with fp16 scales whose groups never part a stage or
// are two of it (Groups): what decoding consists of. gemv_plain.cu takes fp32 and halves,
// multiply.cu everything else, with the same bits.
//
// An item is a tile of 16 rows of W. A block of 16 warps takes a run of items. K is cut into the
// segments of ops/pieces.h (of a row-parallel matrix: its pieces), one a warp; up to 8 warps make a
// team, and teams take the block's items by turns. A lane brings its 16 bytes of a stage through
// two slots in shared memory (cp.async), filled before the launch before has ended and again as
// they are read, across tiles. A warp sums its segment alone, in ascending order, in registers;
// what 16 rows of W sum to waits in shared memory until the round's items are done; then one thread
// a (row of W, row of x) adds the segments in order. One barrier a round; two buffers. Fixed point:
// mma.m16n8k32 on codes (u8) and the two signed-byte limbs of x in two columns.
//
// For up to 4 rows 64 registers and half of the shared memory, so that the next launch's blocks fit
// beside this one's and fill their slots while it ends. Of the router's products, the block that
// ends last makes the choice of experts: it waits for none, and none for it.
// Aliasing: ops/linear.h.
#pragma once
#include "backend/cuda/gemv_conv.cuh"
#include "backend/cuda/stream.cuh"
#include "backend/cuda/top_k.cuh"
#include "ops/pieces.h"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr int kRoundItems = 10, kRoundFloats = 4096;  // at most

// gemv_whole.cu: bytes of shared memory without rows of x; its launch.
std::size_t whole_bytes(const GemvArgs& a, int slot, int groups);
void launch_gemv_whole(const Queue& q, const GemvArgs& a, int slot, int groups, bool few, dim3 grid,
                       std::size_t shared);

// Where a block has rows of x: prepared before, in memory or copied from there, or made by itself
// from residual + delta under a norm (few columns or many) or as they are. A kernel for each: what
// a launch does not run costs it registers and its way through the instruction caches.
enum class Rows : int { Global, Copied, NormOfFew, NormOfMany, Plain };

// Chosen: by tasks or ids. Conv: output 0 goes through a causal convolution, too.
template <int Octets, int Slot, int Groups, Rows From, bool Chosen, bool Conv>
__global__ void __launch_bounds__(kRowThreads, Octets == 1 ? 2 : 1)
    gemv(const __grid_constant__ GemvArgs a) {
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const bool late = Chosen && a.known == 0;
  start_next(!late);  // else the next launch could not know of ours what it is told to
  char* memory = shared_memory();
  constexpr int kSlotBytes = slot_bytes(Slot, Groups);
  Output* const outputs = reinterpret_cast<Output*>(memory + 2 * kRowWarps * kSlotBytes);
  Segments* const segments = reinterpret_cast<Segments*>(outputs + kMaxOutputs);
  Course* const courses = reinterpret_cast<Course*>(segments + kShares * kMaxPieces);
  float* const scratch = reinterpret_cast<float*>(courses + kRowWarps);
  float* const sums = scratch + 2 * kRowWarps;
  const int each = a.width * kTile, item_floats = a.parts * each,
            round_floats = a.round_items * item_floats;
  float* const halves = sums + 2 * round_floats;  // [part][segment of the second half][each]
  char* const own_words =
      reinterpret_cast<char*>(halves + (a.split != 0 ? kMaxPieces * kMaxHalf * each : 0));
#pragma unroll
  for (int i = 0; i < kMaxOutputs; ++i)
    if (tid == i) outputs[i] = a.out[i];
  if (tid < kMaxPieces * kMaxPieces) {  // a thread a segment: this comes before all prefetching
    const int i = tid / kMaxPieces, j = tid % kMaxPieces, begin = i == 0 ? 0 : a.part_end[i - 1],
              stages = a.part_end[i] - begin, count = a.tree ? segment_count(stages) : 1,
              run = a.parts_of_warp;
    if (run > 1) {  // of a segment each
      Segments& of = segments[i / run];
      if (j == 0) of.end[i % run] = a.part_end[i], of.count = run;
      if (j == 0 && i % run == 0) of.begin = begin;
    } else if (j < count) {
      const int end = begin + stages * (j + 1) / count, half = (count + 1) / 2;
      Segments* of = segments + i;
      if (j == 0) of[kWhole].begin = begin, of[kWhole].count = count;
      of[kWhole].end[j] = end;
      if (j == 0)
        of[kFirstHalf * kMaxPieces].begin = begin, of[kFirstHalf * kMaxPieces].count = half;
      Segments& part = of[(j < half ? kFirstHalf : kSecondHalf) * kMaxPieces];
      part.end[j < half ? j : j - half] = end;
      if (j + 1 == half)
        of[kSecondHalf * kMaxPieces].begin = end, of[kSecondHalf * kMaxPieces].count = count - half;
    }
  }
  block_sync();

  // This warp's stages, and whose turn is whose.
  const int team_warps = a.team_warps, teams = kRowWarps / team_warps, team = warp / team_warps,
            part = warp % team_warps;
  const Segments* const own = segments + part;
  const bool has_part = part * a.parts_of_warp < a.parts;
  const int first = own->begin, last = own->end[own->count - 1];
  const int pair = a.swiglu, per_job = 1 + pair, block = static_cast<int>(blockIdx.x);
  // Rows of x for chosen experts are asked for before the ids are.
  const int x_stages = a.m * a.stages, x_stage = 4 * warp + lane / 8;
  const bool x_early = Chosen && From == Rows::Plain && late && x_stages <= 4 * kRowWarps;
  Eight x_values{};
  if (late) await_last(), let_next();
  if (x_early) x_values = load_eight(a.source.x + (x_stage < x_stages ? x_stage : 0) * kStage);
  const int jobs = Chosen && a.tasks != nullptr ? a.jobs * load_fresh(a.task_count) : a.all_jobs;
  const int begin = a.by_blocks.of(jobs * block) * per_job,
            end = a.by_blocks.of(jobs * (block + 1)) * per_job;
  // Of an odd number of items the last is shared, by segments: it would take one team as long as
  // all of a block with one item less.
  const int split = !Chosen && a.split != 0 && (end - begin) % 2 != 0 ? end - 1 : 0x7fffffff;
  const int mine_end = end + (split < end && team == 1);
  char* slot = memory + warp * (2 * kSlotBytes);  // in use
  int other = kSlotBytes;
  Stream<Slot, Groups> stream{};
  stream.slot = slot + lane * 16, stream.other = other;
  Course& course = courses[warp];
  course.item = begin + team, course.end = has_part && first < last ? mine_end : begin;
  course.split = split, course.step = teams;
  warp_sync();
  if (begin + team < course.end)
    stream.template locate<Chosen>(a, outputs, own, course, begin + team);
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    warp_sync();
    stream.template bring<Chosen>(a, outputs, own, course);
  }
  if (!late)
    ask_ahead<Groups, Chosen>(a, outputs, begin + team, teams, has_part ? end : begin, first, last,
                              a.parts_of_warp > 1 ? 2 : 2 * Slot);
  if constexpr (Conv) ask_for_state(a.conv, begin, end);

  const uint4* words = reinterpret_cast<const uint4*>(own_words);
  RowMeta* const own_meta = reinterpret_cast<RowMeta*>(own_words + a.copy_rows * a.stages * 128);
  const RowMeta* meta = own_meta;
  await_last();
  if constexpr (From == Rows::Global) {
    words = static_cast<const uint4*>(a.fixed.words), meta = a.fixed.meta;
  } else if constexpr (From == Rows::Copied) {
    const int bytes = a.copy_rows * a.stages * 128;
    const char* from = static_cast<const char*>(a.fixed.words);
#pragma unroll 4
    for (int i = tid * 16; i < bytes; i += kRowThreads * 16)
      *reinterpret_cast<uint4*>(own_words + i) = *reinterpret_cast<const uint4*>(from + i);
    for (int r = warp; r < a.copy_rows; r += kRowWarps)
      for (int i = lane; i < a.stages; i += 32)
        own_meta[r * a.meta_pitch + i] = a.fixed.meta[r * a.stages + i];
  } else if constexpr (From == Rows::Plain) {
    if (x_early)
      round_eight(x_values, x_stage < x_stages, x_stage, a.int8, {own_words}, own_meta);
    else
      plain_rows(a.source, a.m, warp, kRowWarps, a.int8, {own_words}, own_meta);
  } else {
    NormRows<From == Rows::NormOfFew ? kFewStages : kHeldStages, false> rows(a.source);
    const auto slice = [&] {
      return Slice{a.by_blocks.of(a.source.k * block), a.by_blocks.of(a.source.k * (block + 1))};
    };
    const bool stores = rows.has(slice());
#pragma unroll 1
    for (int r = 0; r < a.m; ++r)
      rows.template make<(Groups > 1)>(a.source, r, r, a.int8, stores, slice,
                                       {own_words + r * a.stages * 128}, own_meta + r * a.stages,
                                       scratch);
  }
  if constexpr (From != Rows::Global) block_sync();

  // One round if all fits.
  const int round_items = end - begin <= 2 * a.round_items ? 2 * a.round_items : a.round_items;
#pragma unroll 1
  for (int at = begin, turn = 0; at < end; at += round_items, turn ^= 1) {
    float* const round = sums + turn * round_floats;
    const int stop = at + round_items < end ? at + round_items : end,
              mine_stop = stop < end ? stop : mine_end;
#pragma unroll 1
    for (int item = at + team; item < mine_stop; item += teams) {
      if (!has_part) break;
      const int of_task = Chosen ? a.by_task_items.of(item) : 0;
      const Task* task = Chosen && a.tasks != nullptr ? a.tasks + of_task : nullptr;
      const int count = task != nullptr ? task->rows : Chosen ? 1 : a.m;
      const uint4* x[Octets];    // column 8 o + lane / 4 of B: limb, row of x
      const RowMeta* y[Octets];  // rows 4 o + lane % 4, whose sums this lane holds
#pragma unroll
      for (int o = 0; o < Octets; ++o) {  // where there is no such row: others', for nobody
        int in = 4 * o + lane / 8, of = 4 * o + lane % 4;
        in = in < count ? in : 0, of = of < count ? of : 0;
        if (task != nullptr) in = task->x[in], of = task->x[of];
        if (Chosen && task == nullptr) in = of = of_task * a.x_step;
        x[o] = words + in * a.stages * 8 + lane / 4 % 2 * 4 + lane % 4;
        y[o] = meta + of * a.meta_pitch;
      }
      float total[Octets][2] = {};
      float* to = round + (item - at) * item_floats + part * a.parts_of_warp * each + lane / 4;
      const bool second = item > split;
      if (second) to = halves + part * kMaxHalf * each + lane / 4;
      const Segments& now = own[share_of(item, split) * kMaxPieces];
      int s = now.begin;
#pragma unroll 1
      for (int segment = 0; segment < now.count; ++segment) {
        const int here = now.end[segment];
        float acc[Octets][2] = {};
#pragma unroll 1
        while (s < here) {
          const int stages = here - s < Slot ? here - s : Slot;
          copy_async_wait<1>();
          warp_sync();
          const char *codes = slot + lane * 16, *scales = slot + Slot * kCodeBytes + lane / 4 * 4;
          const auto add = [&](int j) {
            add_stage<Octets, Groups>(codes + j * kCodeBytes, scales + j * Groups * kScaleBytes, x,
                                      y, s + j, acc);
          };
          each_stage<Slot>(stages, add);
          s += stages;
          warp_sync();  // all have read the slot
          stream.template bring<Chosen>(a, outputs, own, courses[warp]);
          slot += other, other = -other;
        }
#pragma unroll
        for (int o = 0; o < Octets; ++o)
#pragma unroll
          for (int h = 0; h < 2; ++h) total[o][h] = total[o][h] + acc[o][h];
        if (segment + 1 < now.count && a.parts_of_warp == 1 && !second) continue;
#pragma unroll
        for (int o = 0; o < Octets; ++o) {
          const int m = 4 * o + lane % 4;
          if (m < count) to[m * kTile] = total[o][0], to[m * kTile + 8] = total[o][1];
          total[o][0] = total[o][1] = 0;
        }
        to += each;
      }
    }
    block_sync();
    // Sums of segments or pieces, bias, SwiGLU: by 16 threads a (job, row of x).
#pragma unroll 1
    for (int i = tid / kTile; i < ((stop - at) >> pair) * a.width; i += kRowThreads / kTile) {
      const int of = a.width == 1 ? i : i / a.width, job = (at >> pair) + of, m = i - of * a.width;
      int out = 0, tile = job;
      std::int64_t y_row = m;
      if constexpr (Chosen) {
        const int of_task = a.by_task_items.of(job * per_job);
        tile = job - of_task * a.jobs, y_row = of_task;
        if (a.tasks != nullptr) {
          const Task* task = a.tasks + of_task;
          if (m >= task->rows) continue;
          y_row = task->y[m];
        }
      }
      if (!a.swiglu)
        while (out + 1 < a.outputs && tile >= outputs[out + 1].first) ++out;
      const Output& o = outputs[out];
      const int n = (tile - o.first) * kTile + tid % kTile;
      if (n >= o.n) continue;
      const float* from = round + of * per_job * item_floats + m * kTile + tid % kTile;
      float v[2] = {};
#pragma unroll 1
      for (int which = 0; which < per_job; ++which, from += item_floats) {
        float p[kMaxPieces];
#pragma unroll
        for (int j = 0; j < kMaxPieces; ++j) p[j] = j < a.parts ? from[j * each] : 0.0f;
        if (job == split) {
          const float* half = halves + m * kTile + tid % kTile;
#pragma unroll 1
          for (int k = 0; k < a.split; ++k)
#pragma unroll
            for (int j = 0; j < kMaxPieces; ++j) p[j] = p[j] + half[(j * kMaxHalf + k) * each];
        }
        if (a.pieces) {
#pragma unroll
          for (int j = 0; j < kMaxPieces; ++j)
            if (j < a.parts) o.y[(y_row * kMaxPieces + j) * o.ldy + n] = p[j];
          break;
        }
        float sum = 0;
        if (a.tree) {  // of fewer pieces the others are zeros, which add nothing
          const float left = (p[0] + p[1]) + (p[2] + p[3]), right = (p[4] + p[5]) + (p[6] + p[7]);
          sum = a.parts == 8 ? left + right : a.parts == 4 ? left : p[0] + p[1];
        } else {
#pragma unroll
          for (int j = 0; j < kMaxPieces; ++j)
            if (j < a.parts) sum = sum + p[j];
        }
        const float* bias = outputs[a.swiglu ? which : out].bias;
        if (bias != nullptr) sum = sum + bias[n];
        if (which == 0)
          v[0] = sum;
        else
          v[1] = sum;
      }
      if (!a.pieces) o.y[y_row * o.ldy + n] = a.swiglu ? silu(v[0]) * v[1] : v[0];
      if constexpr (Conv)
        if (out == 0) convolve(a.conv, m, n, v[0]);
    }
  }
  if (!Chosen && a.choice.k > 0)
    choose_at_last(a.choice, a.out[0].y, a.out[0].ldy, a.out[0].n, a.m);
}

using GemvKernel = void (*)(GemvArgs);
// conv: of more than 4 copied rows; elsewhere a convolution is a launch of its own.
template <int Octets, int Slot, int Groups, Rows From>
GemvKernel kernel_of(bool chosen, bool conv) {
  constexpr bool kNorm = From == Rows::NormOfFew || From == Rows::NormOfMany;
  if constexpr (Octets == 2 && Groups == 1 && From == Rows::Copied)
    if (conv) return gemv<Octets, Slot, Groups, From, false, true>;
  return chosen ? gemv<Octets, Slot, Groups, From, !kNorm, false>
                : gemv<Octets, Slot, Groups, From, false, false>;
}
template <int Octets, int Slot, int Groups>
GemvKernel kernel_of(Rows from, bool chosen, bool conv) {
  switch (from) {
    case Rows::Global:
      return kernel_of<Octets, Slot, Groups, Rows::Global>(chosen, conv);
    case Rows::Copied:
      return kernel_of<Octets, Slot, Groups, Rows::Copied>(chosen, conv);
    case Rows::NormOfFew:
      return kernel_of<Octets, Slot, Groups, Rows::NormOfFew>(chosen, conv);
    case Rows::NormOfMany:
      return kernel_of<Octets, Slot, Groups, Rows::NormOfMany>(chosen, conv);
    default:
      return kernel_of<Octets, Slot, Groups, Rows::Plain>(chosen, conv);
  }
}
template <int Octets, int Groups>
GemvKernel kernel_of(int slot, Rows from, bool chosen, bool conv) {
  return (slot == kShortSlot ? kernel_of<Octets, kShortSlot, Groups>
                             : kernel_of<Octets, kLongSlot, Groups>)(from, chosen, conv);
}
// gemv_32.cu
extern template GemvKernel kernel_of<1, 2>(int, Rows, bool, bool);
extern template GemvKernel kernel_of<2, 2>(int, Rows, bool, bool);

}  // namespace nibble::NIBBLE_CUDA_NS
