// Many rows of x at once in the matrix unit: A is x's bytes, 16 rows of a unit's 64 columns; B is
// the packed codes as they lie (a vector of 64 bytes is 4 columns of 16 rows of W), INT4's split
// first. A unit's sums leave the tiles and are scaled as linear.inl says: the bits are the same.
// clang-format off
#include "backend/cpu/simd/words.inl"
#include "backend/cpu/simd/avx512.h"
#include "backend/cpu/simd/dot.inl"
#include "backend/cpu/simd/linear.inl"
#ifndef NIBBLE_AMX_H
#define NIBBLE_AMX_H "backend/cpu/simd/amx.h"  // tests put an emulation here
#endif
#include NIBBLE_AMX_H
// clang-format on

namespace nibble::cpu {
namespace {

constexpr int kTileRows = 16;
enum : int { kLow0, kHigh0, kLow1, kHigh1, kX0, kX1, kCodes };  // tiles

struct Scratch {
  alignas(64) std::uint8_t codes[16 * 64];
  alignas(64) std::int32_t low[kWideRows][kTile], high[kWideRows][kTile];
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
    for (int v = 0; v < 4 * chunks; ++v) {
      const V w = v_load(codes + v * 64);
      _mm512_store_si512(to + v * 128, v_and(w, nibble));
      _mm512_store_si512(to + v * 128 + 64, v_and(v_shr16(w, 4), nibble));
    }
  }
  if (chunks < depth) std::memset(to + 512, 0, 512);
  return to;
}

// The sums of one limb of up to 16 rows of x.
template <WeightType T, int Sum, int X>
inline void limb(const std::int8_t* x, std::int64_t pitch, std::int32_t (*out)[kTile]) {
  tile_zero<Sum>();
  tile_load<X>(x, pitch);
  if constexpr (T == WeightType::Int8)
    tile_dot_signed<Sum, X, kCodes>();
  else
    tile_dot_unsigned<Sum, X, kCodes>();
  tile_store<Sum>(out, sizeof *out);
}

template <WeightType T, Activations A>
void wide(const TileWeight& w, std::int64_t t, std::int64_t ahead, const XRow* x, int rows,
          float* out) {
  constexpr bool kTwo = A == Activations::Int16;
  const std::uint8_t* codes = w.codes + t * w.tile_bytes;
  const Ahead next(w, t, ahead);
  const std::int64_t scales = t * w.groups * kTile, pitch = rows > 1 ? x[1].lo - x[0].lo : 0;
  int depth = 1;  // chunks of the longest unit
  for (int i = 0; i < w.unit_count; ++i) depth = w.units[i].chunks > depth ? 2 : depth;

  const int first = rows < kTileRows ? rows : kTileRows, second = rows - first;
  TileConfig config;
  const auto shape = [&](int tile, int r, int bytes) {
    config.rows[tile] = static_cast<std::uint8_t>(r < 1 ? 1 : r);
    config.row_bytes[tile] = static_cast<std::uint16_t>(bytes);
  };
  shape(kLow0, first, 64), shape(kHigh0, first, 64), shape(kX0, first, 32 * depth);
  shape(kLow1, second, 64), shape(kHigh1, second, 64), shape(kX1, second, 32 * depth);
  shape(kCodes, 8 * depth, 64);
  tiles_begin(config);

  Scratch s;
  F piece[kRowParallelPieces][kWideRows];
  const Unit *u = w.units, *const end = u + w.unit_count;
  for (int p = 0; p < w.pieces; ++p) {
    F *total = piece[p], acc[kWideRows];
    for (int m = 0; m < rows; ++m) acc[m] = total[m] = f_zero();
    for (; u != end && u->piece == p; ++u) {
      const std::int64_t scale_at = scales + static_cast<std::int64_t>(u->group) * kTile,
                         k0 = static_cast<std::int64_t>(u->chunk) * kChunk;
      next.bring<T>(codes, *u, scale_at);
      tile_load<kCodes>(unit_codes<T>(codes + u->chunk * static_cast<std::int64_t>(chunk_bytes(T)),
                                      u->chunks, depth, s.codes),
                        64);
      limb<T, kLow0, kX0>(x[0].lo + k0, pitch, s.low);
      if constexpr (kTwo) limb<T, kHigh0, kX0>(x[0].hi + k0, pitch, s.high);
      if (second > 0) {
        limb<T, kLow1, kX1>(x[kTileRows].lo + k0, pitch, s.low + kTileRows);
        if constexpr (kTwo) limb<T, kHigh1, kX1>(x[kTileRows].hi + k0, pitch, s.high + kTileRows);
      }
      const F scale = load_scale(w, w.scales, scale_at);
      F offset{};
      if constexpr (T == WeightType::Int4Aff) offset = load_scale(w, w.offsets, scale_at);
      for (int m = 0; m < rows; ++m) {
        I sum = i_load(s.low[m]);
        if constexpr (kTwo) sum = i_add(sum, i_shl(i_load(s.high[m]), 8));
        if constexpr (T == WeightType::Int4)
          for (int c = 0; c < u->chunks; ++c) sum = i_add(sum, i_set1(x[m].minus8[u->chunk + c]));
        acc[m] = f_fma(f_from_i(sum), f_mul(scale, f_set1(x[m].scale[u->block])), acc[m]);
        if constexpr (T == WeightType::Int4Aff)
          for (int c = 0; c < u->chunks; ++c)
            acc[m] = f_fma(f_set1(x[m].sum[u->chunk + c]), offset, acc[m]);
        if (u->closes) total[m] = f_add(total[m], acc[m]), acc[m] = f_zero();
      }
    }
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
