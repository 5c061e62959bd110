// Many rows of x at once in the matrix unit: A is a panel's bytes, 16 rows of a unit's columns; B
// is the packed codes as they lie (a vector of 64 bytes is 4 columns of 16 rows of W), INT4's split
// and centred first. A unit's sums leave the tiles and are scaled as linear.inl says: the bits are
// the same.
// clang-format off
#include "backend/cpu/simd/words.inl"
#include "backend/cpu/simd/avx512.h"
#include "backend/cpu/simd/dot.inl"
#include "backend/cpu/simd/linear.inl"
#ifndef NIBBLE_AMX_H
#define NIBBLE_AMX_H "backend/cpu/simd/amx.h"  // tests put an emulation here
#endif
#include NIBBLE_AMX_H

#include <utility>
// clang-format on

namespace nibble::cpu {
namespace {

constexpr int kRun = 16;                          // units whose codes lie split in the first cache
constexpr int kBlockBytes = kPanelRows * kBlock;  // of a panel and limb

// A unit's sum leaves its tile while later ones are computed (with one limb two units later; two
// limbs are two tiles: one), and is scaled a unit after that. Waiting for either takes longer.
template <Activations A>
inline constexpr int kLimbs = A == Activations::Int16 ? 2 : 1;
template <Activations A>
inline constexpr int kLag = 2 / kLimbs<A>;

struct Scratch {
  alignas(64) std::uint8_t codes[kRun][2 * 512];
  alignas(64) std::int32_t sums[4][kPanelRows][kTile];
  F scale[kRun], offset[kRun];
  F acc[kWideRows];
  const std::uint8_t* b[kRun];
  std::int64_t a[kRun];  // where the unit begins in a panel
};

// B of a unit: 8 rows a chunk, zeros up to `depth` chunks.
template <WeightType T>
inline const std::uint8_t* unit_codes(const std::uint8_t* codes, int chunks, int depth,
                                      std::uint8_t* to) {
  if constexpr (T == WeightType::Int8) {
    if (chunks == depth) return codes;
    std::memcpy(to, codes, 512);
  } else {
    const V nibble = v_set8(15);
    const auto store = [to](int v, V code) {
      if (T == WeightType::Int4) code = _mm512_sub_epi8(code, v_set8(8));
      _mm512_store_si512(to + v * 64, code);
    };
    for (int v = 0; v < 4 * chunks; ++v) {
      const V w = v_load(codes + v * 64);
      store(2 * v, v_and(w, nibble)), store(2 * v + 1, v_and(v_shr16(w, 4), nibble));
    }
  }
  if (chunks < depth) std::memset(to + 512, 0, 512);
  return to;
}

// f(0), f(1) ... f(N - 1), each a constant, so that arrays it indexes stay in registers.
template <int N, class F>
[[gnu::always_inline]] inline void each(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>()), ...);
  }
  (std::make_integer_sequence<int, N>());
}

// Adds unit u, scaled; its integer sums are those of `low` and 256 times those of `high`, which
// have 16 bits where Short: 32 products of at most 8 x 127.
template <WeightType T, int L, int R, bool Short>
[[gnu::always_inline]] inline void add_sums(const Unit& u, F scale, F offset,
                                            const std::int32_t (*low)[kTile],
                                            const std::int32_t (*high)[kTile], const Panel& x,
                                            F* total, F (&acc)[R]) {
  const float* xs = x.scale + u.block * kPanelRows;
  each<R>([&](auto m) __attribute__((always_inline)) {
    I n = i_load(low[m]);
    if constexpr (Short)
      n.v = v_dpwssd(n.v, i_load(high[m]).v, _mm512_set1_epi32(256));
    else if (L == 2)
      n = i_add(n, i_shl(i_load(high[m]), 8));
    acc[m] = f_fma(f_from_i(n), f_mul(scale, f_set1(xs[m])), acc[m]);
  });
  if constexpr (T == WeightType::Int4Aff)
    for (int c = 0; c < u.chunks; ++c) {
      const float* sum = x.sum + (u.chunk + c) * kPanelRows;
      each<R>([&](auto m) __attribute__((always_inline)) {
        acc[m] = f_fma(f_set1(sum[m]), offset, acc[m]);
      });
    }
  if (u.closes) {
    F* const of_piece = total + u.piece * kWideRows;
    each<R>([&](auto m) __attribute__((always_inline)) {
      of_piece[m] = f_add(of_piece[m], acc[m]), acc[m] = f_zero();
    });
  }
}

// `units` units of a run, from `u` on, times the first R rows of a panel. A piece's last unit
// closes, so that a run may go on with the next one.
template <WeightType T, Activations A, int R, bool Short>
inline void run_panel(Scratch& s, const Unit* u, int units, const Panel& x, F* acc, F* total) {
  constexpr int L = kLimbs<A>, kSlots = 4 / L;
  F sum[R];
  each<R>([&](auto m) __attribute__((always_inline)) { sum[m] = acc[m]; });
  const auto is_unit = [units](int i) { return i >= 0 && i < units; };
  for (int i = 0; i <= units + kLag<A>; i += kSlots)
    each<kSlots>([&](auto slot) __attribute__((always_inline)) {
      constexpr int kNew = slot, kOld = (kNew + kSlots - kLag<A>) % kSlots,
                    kOldest = (kOld + kSlots - 1) % kSlots, kA = 4 + kNew * L % 2,
                    kB = 6 + kNew % 2;
      const int now = i + kNew, old = now - kLag<A>;
      const bool begins = is_unit(now), leaves = is_unit(old);
      if (begins) {
        tile_load<kB>(s.b[now], 64), tile_load<kA>(x.bytes + s.a[now], kBlock);
        if constexpr (L == 2) tile_load<5>(x.bytes + s.a[now] + kBlockBytes, kBlock);
      }
      if (leaves) tile_store<kOld * L>(s.sums[kOld * L], 64);
      if (begins) tile_zero<kNew * L>(), tile_dot<kNew * L, kA, kB>();
      if constexpr (L == 2) {
        if (leaves) tile_store<kOld * L + 1>(s.sums[kOld * L + 1], 64);
        if (begins) tile_zero<kNew * L + 1>(), tile_dot<kNew * L + 1, 5, kB>();
      }
      if (is_unit(old - 1))
        add_sums<T, L, R, Short>(u[old - 1], s.scale[old - 1], s.offset[old - 1],
                                 s.sums[kOldest * L], s.sums[kOldest * L + L - 1], x, total, sum);
    });
  each<R>([&](auto m) __attribute__((always_inline)) { acc[m] = sum[m]; });
}

template <WeightType T, Activations A>
void wide(const TileWeight& w, std::int64_t t, std::int64_t ahead, const Panel* x, int rows,
          float* out) {
  const std::uint8_t* codes = w.codes + t * w.tile_bytes;
  const Ahead next(w, t, ahead);
  const std::int64_t scales = t * w.groups * kTile;
  int depth = 1;  // chunks of the longest unit
  for (int i = 0; i < w.unit_count; ++i) depth = w.units[i].chunks > depth ? 2 : depth;

  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = static_cast<std::uint8_t>(i >= 6 ? 8 * depth : rows > 8 ? kPanelRows : 8);
    config.row_bytes[i] = static_cast<std::uint16_t>(i == 4 || i == 5 ? 32 * depth : 64);
  }
  tiles_begin(config);

  Scratch s;
  F piece[kRowParallelPieces][kWideRows];
  const Unit *u = w.units, *const end = u + w.unit_count;
  std::int64_t block_chunk = 0;  // first chunk of the unit's block
  for (int m = 0; m < rows; ++m) s.acc[m] = f_zero();
  for (int p = 0; p < w.pieces; ++p)
    for (int m = 0; m < rows; ++m) piece[p][m] = f_zero();
  while (u != end) {
    const Unit* const first = u;
    const auto left = static_cast<int>(end - u), runs = (left + kRun - 1) / kRun,
               n = (left + runs - 1) / runs;  // equally long: a run's ends are not overlapped
    for (int i = 0; i < n; ++i, ++u) {
      if (u == w.units || u->block != u[-1].block) block_chunk = u->chunk;
      const std::int64_t scale_at = scales + static_cast<std::int64_t>(u->group) * kTile;
      next.bring<T>(codes, *u, scale_at);
      s.b[i] = unit_codes<T>(codes + u->chunk * static_cast<std::int64_t>(chunk_bytes(T)),
                             u->chunks, depth, s.codes[i]);
      s.a[i] = static_cast<std::int64_t>(u->block) * kLimbs<A> * kBlockBytes +
               (u->chunk - block_chunk) * kChunk;
      s.scale[i] = load_scale(w, w.scales, scale_at);
      if constexpr (T == WeightType::Int4Aff) s.offset[i] = load_scale(w, w.offsets, scale_at);
    }
    const auto panels = [&]<bool Short>(std::bool_constant<Short>) {
      for (int row = 0; row < rows; row += kPanelRows) {
        const Panel& panel = x[row / kPanelRows];
        if (rows - row > 8)
          run_panel<T, A, kPanelRows, Short>(s, first, n, panel, s.acc + row, piece[0] + row);
        else
          run_panel<T, A, 8, Short>(s, first, n, panel, s.acc + row, piece[0] + row);
      }
    };
    constexpr bool kMayBeShort = T == WeightType::Int4 && A == Activations::Int16;
    if (kMayBeShort && depth == 1)
      panels(std::bool_constant<kMayBeShort>());
    else
      panels(std::false_type());
  }
  tiles_end();
  add_pieces<kWideRows>(piece, w.pieces, rows);
  for (int m = 0; m < rows; ++m) f_store(out + m * kTile, piece[0][m]);
}

template <WeightType T>
void fill_wide(WideFn (&row)[2]) {
  row[0] = wide<T, Activations::Int16>, row[1] = wide<T, Activations::Int8>;
}

}  // namespace

void amx_wide(Kernels& k) {
  fill_wide<WeightType::Int4>(k.wide[static_cast<int>(WeightType::Int4)]);
  fill_wide<WeightType::Int4Aff>(k.wide[static_cast<int>(WeightType::Int4Aff)]);
  fill_wide<WeightType::Int8>(k.wide[static_cast<int>(WeightType::Int8)]);
}

}  // namespace nibble::cpu
