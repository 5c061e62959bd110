// y = W x for up to 8 plain rows of x and a row-parallel matrix: what decoding's down is. The bits
// of gemv.cuh.
//
// A block takes a piece of K (ops/pieces.h) and a run of tiles of 16 rows of W, so that it needs an
// eighth of x, which it rounds itself: no launch before it does, and no block reads all of x, whose
// eight rows shared memory could not hold. A unit is a segment of a tile, a warp's; its stages come
// through two slots, as gemv's do. A thread adds a tile's segments in order; what a piece sums to
// goes to memory, and of the blocks that share a run of tiles the one that ends last adds the
// pieces: it waits for none, and none for it.
// Aliasing: ops/linear.h.
#include "backend/cuda/stream.cuh"
#include "ops/pieces.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

struct PiecesArgs {
  const float* x;  // [m][k]
  std::int64_t k;
  const std::uint8_t *codes, *scales;
  const float* bias;
  float *y, *sums;  // sums: [tile][piece][m][16]
  std::int64_t ldy;
  int* arrived;  // [run of tiles] zeros
  int n, m, int8, tiles, stages, groups, group_shift;
  int pieces, each, segments, turns;  // each: stages of a piece
  int in_fours;                       // y's columns come in whole fours, and no bias
  Divider by_pieces, by_runs, by_each, by_segments, by_m;
};

__device__ __forceinline__ float4 plus(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// A warp's units of the block's, in the order of their use, through its two slots.
template <int Groups>
struct Units {
  int unit, units, left, s;  // left: stages of the unit; 0: there are no more; s: Groups a stage
  const std::uint8_t *codes, *scales;  // + 16 lane
  int tile, first;                     // the block's first tile and stage
  char* slot;                          // + 16 lane
  int other;
  ReadOnce once;

  // turns: where eight segments are not equally long, each warp has its turn at each of them.
  __device__ __forceinline__ static int segment_of(const PiecesArgs& a, int u, int of_tile) {
    const int segment = u - of_tile * a.segments;
    return !a.turns ? segment : (segment + u / kRowWarps) % a.segments;
  }
  __device__ __forceinline__ void locate(const PiecesArgs& a) {
    if (unit >= units) return;
    const int lane = static_cast<int>(threadIdx.x) % 32, of_tile = a.by_segments.of(unit),
              segment = segment_of(a, unit, of_tile), begin = a.by_segments.of(a.each * segment);
    const std::int64_t at = tile + of_tile;
    left = a.by_segments.of(a.each * (segment + 1)) - begin;
    s = first + begin;
    codes = a.codes + (at * a.stages + s) * kCodeBytes + lane * 16;
    scales = a.scales + at * a.groups * kScaleBytes + lane % 2 * 16;
    s = s * Groups + lane / 2;
  }
  __device__ __forceinline__ void bring(const PiecesArgs& a) {
    if (left > 0) {
      const int count = left < kLongSlot ? left : kLongSlot;
      bring_stages<kLongSlot, Groups>(slot, codes, scales + (s >> a.group_shift) * kScaleBytes,
                                      count, once);
      codes += count * kCodeBytes, s += count * Groups, left -= count;
      if (left == 0) unit += kRowWarps, locate(a);
    }
    copy_async_commit();
    slot += other, other = -other;
  }
};

// The same of one segment of every other tile, of 4 stages or 5: nothing to look up on the way.
template <int Groups>
struct OneSegment {
  int left;                            // tiles
  int to_next, to_next_scales;         // bytes
  const std::uint8_t *codes, *scales;  // + 16 lane; of this lane's stage
  char* slot;                          // + 16 lane
  int other;
  bool five, brings_scales;
  ReadOnce once;

  __device__ __forceinline__ OneSegment(const PiecesArgs& a, int tile, int tiles, int stage,
                                        int count, char* first_slot, int to_other)
      : slot(first_slot), other(to_other) {
    constexpr int kStep = kRowWarps / kMaxPieces;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::int64_t at = tile;
    left = (tiles + kStep - 1) / kStep;
    codes = a.codes + (at * a.stages + stage) * kCodeBytes + lane * 16;
    scales = a.scales +
             (at * a.groups + ((stage * Groups + lane / 2) >> a.group_shift)) * kScaleBytes +
             lane % 2 * 16;
    to_next = kStep * a.stages * kCodeBytes;
    to_next_scales = kStep * a.groups * kScaleBytes;
    five = count == kLongSlot, brings_scales = lane < 2 * Groups * count;
  }
  __device__ __forceinline__ void bring() {
    if (left > 0) {
#pragma unroll
      for (int j = 0; j < kLongSlot; ++j)
        if (j < kLongSlot - 1 || five)
          copy_async16(slot + j * kCodeBytes, codes + j * kCodeBytes, once);
      if (brings_scales) copy_async16(slot + kLongSlot * kCodeBytes, scales, once);
      codes += to_next, scales += to_next_scales, --left;
    }
    copy_async_commit();
    slot += other, other = -other;
  }
};

// The block's stages of all rows of x, `first` the first: row r's at r * each of words, and with
// one more between rows of meta, so that they lie in different banks.
template <int N>  // of four stages, at once
__device__ __forceinline__ void round_slice(const PiecesArgs& a, int first, Words words,
                                            RowMeta* meta) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
            all = a.m * a.each;
#pragma unroll 1
  for (int at = 4 * warp; at < all; at += 4 * N * kRowWarps) {
    Eight v[N];  // all loads before the first use
    int stage[N], row[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      stage[i] = at + 4 * i * kRowWarps + lane / 8;
      const int in = stage[i] < all ? stage[i] : at;
      row[i] = a.by_each.of(in);
      v[i] = load_eight(a.x + row[i] * a.k + (first + in - row[i] * a.each) * kStage);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i > 0 && at + 4 * i * kRowWarps >= all) break;
      round_eight(v[i], stage[i] < all, stage[i], a.int8, words, meta + row[i]);
    }
  }
}

// Held: a warp has one segment of all tiles, 4 stages or 5, and x for them in registers.
template <int Octets, int Groups, bool Held>
__global__ void __launch_bounds__(kRowThreads, Octets == 1 ? 2 : 1)
    gemv_pieces(const __grid_constant__ PiecesArgs a) {
  start_next();
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int run = a.by_pieces.of(static_cast<int>(blockIdx.x)),
            piece = static_cast<int>(blockIdx.x) - run * a.pieces;
  const int tile = a.by_runs.of(a.tiles * run), tiles = a.by_runs.of(a.tiles * (run + 1)) - tile;
  const int width = a.m * kTile;
  char* memory = shared_memory();
  constexpr int kSlotBytes = slot_bytes(kLongSlot, Groups);
  float* const sums = reinterpret_cast<float*>(memory + 2 * kRowWarps * kSlotBytes);
  char* const words = reinterpret_cast<char*>(sums + tiles * a.segments * width);
  RowMeta* const meta = reinterpret_cast<RowMeta*>(words + a.m * a.each * 128);

  char* slot = memory + warp * (2 * kSlotBytes) + lane * 16;  // in use
  int other = kSlotBytes;
  const int segment = warp % kMaxPieces, first_tile = warp / kMaxPieces,
            begin = a.each * segment / kMaxPieces,
            count = a.each * (segment + 1) / kMaxPieces - begin;  // Held
  Units<Groups> next{};
  OneSegment<Groups> held(a, tile + first_tile, tiles - first_tile, piece * a.each + begin, count,
                          slot, other);
  const auto bring = [&] {
    if constexpr (Held)
      held.bring();
    else
      next.bring(a);
  };
  if constexpr (!Held) {
    next.slot = slot, next.other = other, next.unit = warp, next.units = tiles * a.segments;
    next.tile = tile, next.first = piece * a.each;
    next.locate(a);
  }
#pragma unroll 1
  for (int i = 0; i < 2; ++i) bring();
  await_last();
  if (a.m * a.each <= 4 * kRowWarps)
    round_slice<1>(a, piece * a.each, {words}, meta);
  else
    round_slice<kHeldEights>(a, piece * a.each, {words}, meta);
  block_sync();

  const uint4* x[Octets];
  const RowMeta* y[Octets];
  find_rows(words, meta, a.m, a.each, a.each + 1, x, y);
  const char* scales = slot - lane * 16 + kLongSlot * kCodeBytes + lane / 4 * 4;
  const auto store = [&](int at, const float(&acc)[Octets][2]) {
    float* const to = sums + at * width + lane / 4;
#pragma unroll
    for (int o = 0; o < Octets; ++o) {
      const int m = 4 * o + lane % 4;
      if (m < a.m) to[m * kTile] = acc[o][0], to[m * kTile + 8] = acc[o][1];
    }
  };
  const auto leave_slot = [&] {
    warp_sync();  // all have read it
    bring();
    slot += other, scales += other, other = -other;
  };
  if constexpr (Held) {
    uint4 b[Octets][8 * kLongSlot];  // of them every eighth
    RowMeta of[Octets][kLongSlot];
    const uint4* held_x[Octets];
    const RowMeta* held_y[Octets];
#pragma unroll
    for (int o = 0; o < Octets; ++o) {
      held_x[o] = b[o], held_y[o] = of[o];
#pragma unroll
      for (int j = 0; j < kLongSlot; ++j) {
        const int s = begin + (j < count ? j : 0);
        b[o][8 * j] = x[o][8 * s], of[o][j] = y[o][s];
      }
    }
#pragma unroll 1
    for (int of_tile = first_tile; of_tile < tiles; of_tile += kRowWarps / kMaxPieces) {
      float acc[Octets][2] = {};
      copy_async_wait<1>();
      warp_sync();
#pragma unroll
      for (int j = 0; j < kLongSlot; ++j)
        if (j < count)
          add_stage<Octets, Groups>(slot + j * kCodeBytes, scales + j * Groups * kScaleBytes,
                                    held_x, held_y, j, acc);
      leave_slot();
      store(of_tile * kMaxPieces + segment, acc);
    }
  }
#pragma unroll 1
  for (int unit = warp; !Held && unit < tiles * a.segments; unit += kRowWarps) {
    const int of_tile = a.by_segments.of(unit), of = Units<Groups>::segment_of(a, unit, of_tile),
              end = a.by_segments.of(a.each * (of + 1));
    float acc[Octets][2] = {};
#pragma unroll 1
    for (int s = a.by_segments.of(a.each * of); s < end;) {
      const int stages = end - s < kLongSlot ? end - s : kLongSlot;
      copy_async_wait<1>();
      warp_sync();
      const auto add = [&](int j) {
        add_stage<Octets, Groups>(slot + j * kCodeBytes, scales + j * Groups * kScaleBytes, x, y,
                                  s + j, acc);
      };
      each_stage<kLongSlot>(stages, add);
      s += stages;
      leave_slot();
    }
    store(of_tile * a.segments + of, acc);
  }
  block_sync();
  // Four columns of y a thread.
  const int fours = tiles * width / 4;
#pragma unroll 1
  for (int i = tid; i < fours; i += kRowThreads) {
    const int of_tile = a.by_m.of(i / (kTile / 4)), at = 4 * i - of_tile * width;
    const float* from = sums + of_tile * a.segments * width + at;
    float4 p[kMaxPieces], sum{};  // all loads before the first use; what is not there adds nothing
#pragma unroll
    for (int j = 0; j < kMaxPieces; ++j)
      p[j] = j < a.segments ? *reinterpret_cast<const float4*>(from + j * width) : float4{};
#pragma unroll
    for (int j = 0; j < kMaxPieces; ++j) sum = plus(sum, p[j]);
    float* to =
        a.sums + (static_cast<std::int64_t>(tile + of_tile) * a.pieces + piece) * width + at;
    store_four(to, sum);
  }
  if (!is_last_block(a.arrived + run, a.pieces, reinterpret_cast<int*>(memory))) return;
#pragma unroll 1
  for (int i = tid; i < fours; i += kRowThreads) {
    const int of_tile = a.by_m.of(i / (kTile / 4)), at = 4 * i - of_tile * width, m = at / kTile,
              n = (tile + of_tile) * kTile + at % kTile;
    const float* from = a.sums + static_cast<std::int64_t>(tile + of_tile) * a.pieces * width + at;
    float4 p[kMaxPieces];  // of fewer pieces the others are zeros, which add nothing
#pragma unroll
    for (int j = 0; j < kMaxPieces; ++j)
      p[j] =
          j < a.pieces ? load_fresh(reinterpret_cast<const float4*>(from + j * width)) : float4{};
    const float4 left = plus(plus(p[0], p[1]), plus(p[2], p[3])),
                 right = plus(plus(p[4], p[5]), plus(p[6], p[7]));
    const float4 all = a.pieces == 8 ? plus(left, right) : a.pieces == 4 ? left : plus(p[0], p[1]);
    if (a.in_fours) {
      store_four(a.y + m * a.ldy + n, all);
      continue;
    }
    const float sum[] = {all.x, all.y, all.z, all.w};
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (n + c < a.n) a.y[m * a.ldy + n + c] = a.bias != nullptr ? sum[c] + a.bias[n + c] : sum[c];
  }
}

// Runs of tiles that blocks divide W into.
int runs_of(const Queue& q, const Matrix& w) {
  const int most = (q.blocks > 0 ? q.blocks : q.multiprocessors) / w.pieces;
  const int runs = most < w.tiles ? most : w.tiles;
  return runs < 1 ? 1 : runs < kMaxRuns ? runs : kMaxRuns;
}
std::size_t shared_bytes(const Queue& q, const MultiplyArgs& a) {
  const Matrix& w = a.out[0].w;
  const int each = w.piece_end[0], runs = runs_of(q, w), tiles = (w.tiles + runs - 1) / runs;
  return static_cast<std::size_t>(2 * kRowWarps * slot_bytes(kLongSlot, w.stage_groups())) +
         static_cast<std::size_t>(tiles * segment_count(each) * a.m * kTile) * sizeof(float) +
         static_cast<std::size_t>(a.m *
                                  (each * 128 + (each + 1) * static_cast<int>(sizeof(RowMeta))));
}

}  // namespace

bool can_gemv_pieces(const Queue& q, const MultiplyArgs& a) {
  const Matrix& w = a.out[0].w;
  if (a.outputs != 1 || a.finish != Finish::Store || a.tasks != nullptr || a.ids != nullptr ||
      a.source.kind != Source::Plain || a.source.k % kStage != 0 || w.pieces < 2 || !can_gemv(q, a))
    return false;
  for (int i = 0; i < w.pieces; ++i)
    if (w.piece_end[i] != (i + 1) * w.piece_end[0]) return false;
  return w.piece_end[0] > 0 && shared_bytes(q, a) <= q.shared_limit;
}

std::size_t gemv_pieces_scratch(const MultiplyArgs& a) {
  return static_cast<std::size_t>(a.out[0].w.tiles) * static_cast<std::size_t>(a.out[0].w.pieces) *
         static_cast<std::size_t>(a.m * kTile);
}

void launch_gemv_pieces(const Queue& q, const MultiplyArgs& from, float* scratch, int* arrived) {
  const Product& p = from.out[0];
  const Matrix& w = p.w;
  const int runs = runs_of(q, w), each = w.piece_end[0], segments = segment_count(each);
  PiecesArgs a{};
  a.x = from.source.x, a.k = from.source.k, a.codes = w.codes, a.scales = w.scales;
  a.bias = p.bias, a.y = p.y, a.ldy = p.ldy, a.sums = scratch, a.arrived = arrived;
  a.n = w.n, a.m = from.m, a.int8 = from.int8, a.tiles = w.tiles;
  a.stages = w.stages, a.groups = w.groups, a.group_shift = w.record_shift();
  a.pieces = w.pieces, a.each = each, a.segments = segments;
  a.by_pieces = divider(w.pieces), a.by_runs = divider(runs), a.by_each = divider(each);
  a.by_segments = divider(segments), a.by_m = divider(from.m);
  const bool of_32 = w.stage_groups() == 2,
             held = from.m > 4 && segments == kMaxPieces && each <= kMaxPieces * kLongSlot;
  a.turns = kRowWarps % segments == 0 && !held;
  a.in_fours = p.bias == nullptr && w.n % 4 == 0 && p.ldy % 4 == 0 &&
               reinterpret_cast<std::uintptr_t>(p.y) % 16 == 0;
  const dim3 grid{static_cast<unsigned>(runs * w.pieces)};
  const std::size_t shared = alone(q, shared_bytes(q, from));
  if (from.m > 4)
    launch<Begin::Wide>(q, "gemv_pieces",
                        of_32  ? held ? gemv_pieces<2, 2, true> : gemv_pieces<2, 2, false>
                         : held ? gemv_pieces<2, 1, true>
                               : gemv_pieces<2, 1, false>,
                        grid, kRowThreads, shared, a);
  else
    launch<Begin::Stream>(q, "gemv_pieces",
                          of_32 ? gemv_pieces<1, 2, false> : gemv_pieces<1, 1, false>, grid,
                          kRowThreads, shared, a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
