// y = W x for 5 to 8 rows of residual + delta under a norm and matrices with many rows, in one
// launch: the bits of gemv.cuh.
//
// Two things cost a block of gemv time with so many rows, and here do less. Each row of x is made
// by one of the blocks, for all to copy: a block takes its turn at the next one before it waits for
// the launch before, and makes rows as long as there are any; it then waits only for rows that
// blocks which run are making. And a warp takes two tiles of 16 rows of W at a time, its segment of
// K of both, so that it reads x from shared memory half as often: with 8 rows of x that is what
// shared memory was busy with, and memory was not what the loop waited for. Aliasing:
// ops/add_rmsnorm_linear.h.
#include "backend/cuda/gemv_conv.cuh"
#include "backend/cuda/stream.cuh"
#include "ops/pieces.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kParts = kMaxPieces, kTeams = kRowWarps / kParts, kPair = 2;
static_assert(kTeams * kPair * kMaxRows * kTile <= kRowThreads);
constexpr int kSlotStages = 2;  // of both tiles
constexpr int kSlotBytes = slot_bytes(kPair * kSlotStages, 1);

struct PairsArgs {
  Source source;
  Fixed fixed;  // the rows, once they are made
  std::uint64_t* turns;
  Output out[kMaxOutputs];
  int outputs, m, int8, swiglu, tiles, pairs;  // tiles: of one output for SwiGLU, else of all
  int stages, groups, group_shift, meta_pitch;
  Divider by_blocks, by_m;
  ConvArgs conv;
};

// Where the two tiles of a pair lie: gate's and up's, or neighbours; of the last one alone, itself.
__device__ __forceinline__ int tile_of(const PairsArgs& a, int pair, int t) {
  if (a.swiglu) return pair;
  const int tile = kPair * pair + t;
  return tile < a.tiles ? tile : a.tiles - 1;
}
__device__ __forceinline__ const Output& output_of(const PairsArgs& a, const Output* outputs,
                                                   int tile, int t) {
  if (a.swiglu) return outputs[t];
  int out = 0;
  while (out + 1 < a.outputs && tile >= outputs[out + 1].first) ++out;
  return outputs[out];
}

// A warp's stages in the order of their use, through its two slots: [stage][tile] of codes, then of
// scales.
struct PairStream {
  int pair, end, left, s;                     // left: stages of the pair; 0: there are no more
  const std::uint8_t *codes[kPair], *scales;  // codes: + 16 lane; scales: of this lane's tile
  char* slot;
  int other;
  ReadOnce once;

  __device__ __forceinline__ void locate(const PairsArgs& a, const Output* outputs, int first,
                                         int last) {
    if (pair >= end) return;
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int t = 0; t < kPair; ++t) {
      const int tile = tile_of(a, pair, t);
      const Output& o = output_of(a, outputs, tile, t);
      const std::int64_t at = tile - o.first;
      codes[t] = o.codes + (at * a.stages + first) * kCodeBytes + lane * 16;
      if (t == lane / 2 % 2) scales = o.scales + at * a.groups * kScaleBytes + lane % 2 * 16;
    }
    s = first, left = last - first;
  }
  template <bool OneGroup>
  __device__ __forceinline__ void bring(const PairsArgs& a, const Output* outputs, int first,
                                        int last) {
    if (left > 0) {
      const int lane = static_cast<int>(threadIdx.x) % 32,
                count = left < kSlotStages ? left : kSlotStages;
#pragma unroll
      for (int j = 0; j < kSlotStages; ++j)
#pragma unroll
        for (int t = 0; t < kPair; ++t)
          if (j < count)
            copy_async16(slot + (j * kPair + t) * kCodeBytes + lane * 16, codes[t] + j * kCodeBytes,
                         once);
      if (lane < 2 * kPair * (OneGroup ? 1 : count))
        copy_async16(slot + kSlotStages * kPair * kCodeBytes + lane * 16,
                     scales + ((s + lane / 4) >> a.group_shift) * kScaleBytes, once);
      codes[0] += count * kCodeBytes, codes[1] += count * kCodeBytes;
      s += count, left -= count;
      if (left == 0) pair += kTeams, locate(a, outputs, first, last);
    }
    copy_async_commit();
    slot += other, other = -other;
  }
};

// add_stage() of stage s of both tiles, j of the slot. OneGroup: a slot's stages share their
// scales.
template <bool OneGroup>
__device__ __forceinline__ void add_pair(const char* slot, int j, const uint4* const (&x)[2],
                                         const RowMeta* const (&y)[2], int s,
                                         float (&acc)[kPair][2][2]) {
  constexpr std::uint32_t kLow = 0x0f0f0f0f;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint4 b[2];
  int minus8[2];
  float scale[2];
#pragma unroll
  for (int o = 0; o < 2; ++o)
    b[o] = x[o][8 * s], minus8[o] = y[o][s].minus8, scale[o] = y[o][s].scale;
#pragma unroll
  for (int t = 0; t < kPair; ++t) {
    const int at = j * kPair + t;
    const uint4 v = *reinterpret_cast<const uint4*>(slot + at * kCodeBytes + lane * 16);
    const std::uint32_t both = *reinterpret_cast<const std::uint32_t*>(
        slot + kSlotStages * kPair * kCodeBytes + (OneGroup ? t : at) * kScaleBytes + lane / 4 * 4);
    const std::uint32_t w[8] = {v.x & kLow, v.y & kLow, v.x >> 4 & kLow, v.y >> 4 & kLow,
                                v.z & kLow, v.w & kLow, v.z >> 4 & kLow, v.w >> 4 & kLow};
    const float low = from_half(static_cast<std::uint16_t>(both)),
                high = from_half(static_cast<std::uint16_t>(both >> 16));
#pragma unroll
    for (int o = 0; o < 2; ++o) {
      int c[4] = {};
      mma_u8s8(c, w[0], w[1], w[2], w[3], b[o].x, b[o].y);
      mma_u8s8(c, w[4], w[5], w[6], w[7], b[o].z, b[o].w);
      float(&to)[2] = acc[t][o];
      to[0] = fmaf(static_cast<float>(c[0] * 256 + minus8[o] + c[1]), low * scale[o], to[0]);
      to[1] = fmaf(static_cast<float>(c[2] * 256 + minus8[o] + c[3]), high * scale[o], to[1]);
    }
  }
}

// A block's turn to make a row; later ones of the launch are a.m and more. before: turns of
// launches before.
__device__ __forceinline__ int take_turn(const PairsArgs& a, std::uint64_t& before) {
  const std::uint64_t each = gridDim.x + static_cast<unsigned>(a.m), turn = atomic_add(a.turns, 1);
  before = turn / each * each;
  return static_cast<int>(turn - before);
}
// All rows are made. row: this block's turn. told: an int of shared memory. before: thread 0's.
__device__ __forceinline__ void make_rows(const PairsArgs& a, int row, std::uint64_t before,
                                          NormRows<kHeldStages, true>& rows, int* told,
                                          float* scratch) {
#pragma unroll 1
  while (row < a.m) {
    std::uint64_t next = 0;
    if (threadIdx.x == 0) next = atomic_add(a.turns, 1);  // it comes while the row is made
    rows.make<false>(
        a.source, row, 0, a.int8, true,
        [&] {
          return Slice{0, a.source.k};
        },
        {static_cast<char*>(a.fixed.words) + static_cast<std::int64_t>(row) * a.stages * 128},
        a.fixed.meta + row * a.stages, scratch);
    block_sync();
    if (threadIdx.x == 0) {
      fence(), atomic_add(a.turns + 1, 1);
      *told = static_cast<int>(next - before);
    }
    block_sync();
    row = *told;
  }
  if (threadIdx.x == 0) {
    const std::uint64_t launches = before / (gridDim.x + static_cast<unsigned>(a.m)) + 1;
    await_count(a.turns + 1, launches * static_cast<unsigned>(a.m));
  }
  block_sync();
}

template <bool Conv, bool OneGroup>
__global__ void __launch_bounds__(kRowThreads, 1) gemv_pairs(const __grid_constant__ PairsArgs a) {
  start_next();
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32,
            team = warp / kParts, part = warp % kParts, block = static_cast<int>(blockIdx.x);
  char* memory = shared_memory();
  Output* const outputs = reinterpret_cast<Output*>(memory + 2 * kRowWarps * kSlotBytes);
  float* const scratch = reinterpret_cast<float*>(outputs + kMaxOutputs);
  int* const told = reinterpret_cast<int*>(scratch + 2 * kRowWarps);
  float* const sums = scratch + 2 * kRowWarps + 4;
  const int width = a.m * kTile, tile_floats = kParts * width,
            round_floats = kTeams * kPair * tile_floats;
  char* const words = reinterpret_cast<char*>(sums + 2 * round_floats);
  RowMeta* const meta = reinterpret_cast<RowMeta*>(words + a.m * a.stages * 128);
#pragma unroll
  for (int i = 0; i < kMaxOutputs; ++i)
    if (tid == i) outputs[i] = a.out[i];
  std::uint64_t before = 0;
  if (tid == 0) *told = take_turn(a, before);
  block_sync();

  const int first = a.stages * part / kParts, last = a.stages * (part + 1) / kParts;
  const int begin = a.by_blocks.of(a.pairs * block), end = a.by_blocks.of(a.pairs * (block + 1));
  char* slot = memory + warp * (2 * kSlotBytes);  // in use
  int other = kSlotBytes;
  PairStream stream{};
  stream.slot = slot, stream.other = other, stream.pair = begin + team, stream.end = end;
  stream.locate(a, outputs, first, last);
#pragma unroll 1
  for (int i = 0; i < 2; ++i) stream.bring<OneGroup>(a, outputs, first, last);
  if constexpr (Conv) ask_for_state(a.conv, kPair * begin, kPair * end);
  {
    NormRows<kHeldStages, true> rows(a.source);
    rows.ready(a.source);
    await_last();
    make_rows(a, *told, before, rows, told, scratch);
  }
  const int bytes = a.m * a.stages * 128;
  const char* from = static_cast<const char*>(a.fixed.words);
#pragma unroll 4
  for (int i = tid * 16; i < bytes; i += kRowThreads * 16)
    *reinterpret_cast<uint4*>(words + i) = load_fresh(reinterpret_cast<const uint4*>(from + i));
  for (int r = warp; r < a.m; r += kRowWarps)
    for (int i = lane; i < a.stages; i += 32)
      *reinterpret_cast<uint4*>(meta + r * a.meta_pitch + i) =
          load_fresh(reinterpret_cast<const uint4*>(a.fixed.meta + r * a.stages + i));
  block_sync();

  const uint4* x[2];
  const RowMeta* y[2];
  find_rows(words, meta, a.m, a.stages, a.meta_pitch, x, y);
#pragma unroll 1
  for (int at = begin, turn = 0; at < end; at += kTeams, turn ^= 1) {
    float* const round = sums + turn * round_floats;
    // Once the round's sums are there, 16 threads have a tile, or a pair, and row of x.
    const int teams = end - at < kTeams ? end - at : kTeams, unit = a.by_m.of(tid / kTile),
              m = tid / kTile - unit * a.m, tile = a.swiglu ? at + unit : kPair * at + unit;
    const Output& to_y = output_of(a, outputs, tile, 0);
    const int n = (tile - to_y.first) * kTile + tid % kTile;
    const bool has = unit < (a.swiglu ? teams : kPair * teams) && tile < a.tiles && n < to_y.n;
    const bool convolves = Conv && has && &to_y == outputs;
    Convolution conv;
    if constexpr (Conv)
      if (convolves) conv.load(a.conv, m, n);  // it comes while the products are made
    if (at + team < end) {
      float acc[kPair][2][2] = {};
#pragma unroll 1
      for (int s = first; s < last;) {
        copy_async_wait<1>();
        warp_sync();
        const bool whole = last - s >= kSlotStages;
        if (whole) {
#pragma unroll
          for (int j = 0; j < kSlotStages; ++j) add_pair<OneGroup>(slot, j, x, y, s + j, acc);
        } else {
          add_pair<OneGroup>(slot, 0, x, y, s, acc);
        }
        s += whole ? kSlotStages : 1;
        warp_sync();  // all have read the slot
        stream.bring<OneGroup>(a, outputs, first, last);
        slot += other, other = -other;
      }
      float* const to = round + team * kPair * tile_floats + part * width + lane / 4;
#pragma unroll
      for (int t = 0; t < kPair; ++t)
#pragma unroll
        for (int o = 0; o < 2; ++o) {
          const int of = 4 * o + lane % 4;
          float* const sum = to + t * tile_floats + of * kTile;
          if (of < a.m) sum[0] = acc[t][o][0], sum[8] = acc[t][o][1];
        }
    }
    block_sync();
    if (!has) continue;
    // Segments in order, bias, SwiGLU.
    const float* const sums_of =
        round + (a.swiglu ? kPair * unit : unit) * tile_floats + m * kTile + tid % kTile;
    const auto sum_up = [&](const float* p, const float* bias) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kParts; ++j) sum = sum + p[j * width];
      return bias != nullptr ? sum + bias[n] : sum;
    };
    const float v = sum_up(sums_of, to_y.bias);
    to_y.y[m * to_y.ldy + n] =
        a.swiglu ? silu(v) * sum_up(sums_of + tile_floats, outputs[1].bias) : v;
    if constexpr (Conv)
      if (convolves) conv.finish(a.conv, m, n, v);
  }
}

std::size_t shared_bytes(const MultiplyArgs& a) {
  const auto m = static_cast<std::size_t>(a.m),
             stages = static_cast<std::size_t>(a.out[0].w.stages);
  return 2 * kRowWarps * kSlotBytes + kMaxOutputs * sizeof(Output) +
         (2 * kRowWarps + 4 + 2 * kTeams * kPair * kParts * m * kTile) * sizeof(float) +
         m * (stages * 128 + (stages + 1) * sizeof(RowMeta));
}
int tiles_of(const MultiplyArgs& a) {
  int tiles = 0;
  for (int i = 0; i < (a.finish == Finish::SwiGlu ? 1 : a.outputs); ++i) tiles += a.out[i].w.tiles;
  return tiles;
}
int pairs_of(const MultiplyArgs& a) {
  return a.finish == Finish::SwiGlu ? tiles_of(a) : (tiles_of(a) + 1) / kPair;
}

}  // namespace

int gemv_pairs_blocks(const Queue& q, const MultiplyArgs& a) {
  const Matrix& w = a.out[0].w;
  const int blocks = q.blocks > 0 ? q.blocks : q.multiprocessors;
  if (a.m <= kMaxRows / 2 || a.m > kMaxRows || a.tasks != nullptr || a.ids != nullptr ||
      a.finish == Finish::Pieces || a.source.kind != Source::Norm || !rows_in_registers(a.source) ||
      w.pieces > 1 || segment_count(w.stages) != kParts || !can_gemv(q, a) ||
      w.stage_groups() != 1 || pairs_of(a) < kTeams * blocks || blocks > kMaxSharers ||
      shared_bytes(a) > q.shared_limit)
    return 0;
  return blocks;
}

void launch_gemv_pairs(const Queue& q, const MultiplyArgs& from, std::uint64_t* turns) {
  const Matrix& w = from.out[0].w;
  const int blocks = gemv_pairs_blocks(q, from);
  PairsArgs a{};
  a.source = from.source, a.fixed = from.fixed, a.turns = turns;
  a.outputs = from.outputs, a.m = from.m, a.int8 = from.int8;
  a.swiglu = from.finish == Finish::SwiGlu;
  for (int i = 0, first = 0; i < a.outputs; ++i) {
    const Product& p = from.out[i];
    a.out[i] = {p.w.codes, p.w.scales, p.bias, p.y, p.ldy, p.w.n, a.swiglu ? 0 : first};
    first += p.w.tiles;
  }
  a.tiles = tiles_of(from), a.pairs = pairs_of(from);
  a.stages = w.stages, a.groups = w.groups, a.group_shift = w.group_shift;
  a.meta_pitch = a.stages + 1;  // so that rows lie in different banks
  a.by_blocks = divider(blocks), a.by_m = divider(from.m);
  const bool wanted = from.conv.y != nullptr, conv = wanted && can_convolve(from.conv.state);
  a.conv = from.conv;
  const bool one_group =
      w.group_shift > 0 && a.stages % (2 * kParts) == 0;  // segments begin evenly
  constexpr void (*kKernels[2][2])(PairsArgs) = {
      {gemv_pairs<false, false>, gemv_pairs<false, true>},
      {gemv_pairs<true, false>, gemv_pairs<true, true>}};
  const auto kernel = kKernels[conv][one_group];
  const dim3 grid{static_cast<unsigned>(blocks)};
  const std::size_t shared = alone(q, shared_bytes(from));
  // A launch that has this one's turns again must not take them before this one is over. That it
  // comes so early needs all blocks of those between to wait for this one, each on a multiprocessor
  // of its own (by its registers).
  if ((kTurns - 1) * blocks + 2 > q.multiprocessors)
    launch<Begin::Wide>(q, "gemv_pairs", kernel, grid, kRowThreads, shared, a);
  else
    launch<Begin::Late>(q, "gemv_pairs", kernel, grid, kRowThreads, shared, a);
  if (wanted && !conv) launch_conv(q, from.conv);
}

}  // namespace nibble::NIBBLE_CUDA_NS
