// linear, one tile: 16 rows of W, one a lane, times MB rows of x. Included by every instruction
// set's file after its vector header.
//
// Per unit (pieces.h), in ascending order, with one fp32 accumulator a lane and segment:
//   fixed point   s = sum code' * q, an exact integer;  acc = fma(s, wscale * xscale, acc)
//                 code' = code - 8 (int4), code (others)
//   fp32          s = sum of fma(code', x, s) over the unit's columns; acc = fma(s, wscale, acc)
//   int4-affine   also, for each chunk,                 acc = fma(sum x, offset, acc)
//   plain         s as fp32 with the weight's value;    acc = acc + s
// Segments are then added in ascending order, pieces as ((01)(23))((45)(67)).
namespace nibble::cpu {
namespace {

template <bool kF16>
inline F load_scale(const std::uint8_t* base, std::int64_t at) {
  if constexpr (kF16) return f_from_half(reinterpret_cast<const std::uint16_t*>(base) + at);
  return f_load(reinterpret_cast<const float*>(base) + at);
}
inline F load_scale(const TileWeight& w, const std::uint8_t* base, std::int64_t at) {
  return w.scales_f16 ? load_scale<true>(base, at) : load_scale<false>(base, at);
}

constexpr int chunk_bytes(WeightType t) {
  switch (t) {
    case WeightType::Int4:
    case WeightType::Int4Aff:
      return 256;
    case WeightType::Int8:
      return 512;
    case WeightType::F16:
    case WeightType::BF16:
      return 1024;
    default:
      return 2048;
  }
}

// The 16 rows' values (codes, unscaled) in column c of a chunk.
template <WeightType T>
inline F column(const std::uint8_t* chunk, int c) {
  if constexpr (T == WeightType::Int4 || T == WeightType::Int4Aff) {
    const I v = i_sar(i_load(chunk + c / 8 * 64), c % 4 * 8 + c / 4 % 2 * 4);
    const I code = i_and(v, i_set1(15));
    return f_from_i(T == WeightType::Int4 ? i_sub(code, i_set1(8)) : code);
  } else if constexpr (T == WeightType::Int8) {
    return f_from_i(i_sar(i_shl(i_load(chunk + c / 4 * 64), 24 - c % 4 * 8), 24));
  } else if constexpr (T == WeightType::F16) {
    return f_from_half(reinterpret_cast<const std::uint16_t*>(chunk) + c * 16);
  } else if constexpr (T == WeightType::BF16) {
    return f_from_bf16(reinterpret_cast<const std::uint16_t*>(chunk) + c * 16);
  } else {
    return f_load(reinterpret_cast<const float*>(chunk) + c * 16);
  }
}

template <WeightType T, Activations A, int MB, int Chunks>
inline void add_unit(const TileWeight& w, const std::uint8_t* codes, const Unit& u,
                     std::int64_t scale_at, const XRow* x, F* acc) {
  constexpr bool kFixed = is_quantised(T) && A != Activations::Fp32;
  constexpr int kStride = kFixed ? kWordStride<MB> : 1;
  const std::int64_t k0 = static_cast<std::int64_t>(u.chunk) * kChunk;
  // Entry `at` of row m in an array with one entry a chunk or block.
  const auto entry = [&](float* XRow::*array, int m, std::int64_t at) {
    const float* base = kStride == 1 ? x[m].*array : x[0].*array + m;
    return f_set1(base[at * kStride]);
  };
  if constexpr (kFixed) {
    constexpr int kLimbs = A == Activations::Int16 ? 2 : 1;
    I s[MB];
    if constexpr (T == WeightType::Int8)
      dot_int8<kLimbs, MB, Chunks>(codes, x, k0, s);
    else
      dot_int4<kLimbs, MB, Chunks, T == WeightType::Int4>(codes, x, k0, s);
    const F scale = load_scale(w, w.scales, scale_at);
    for (int m = 0; m < MB; ++m)
      acc[m] = f_fma(f_from_i(s[m]), f_mul(scale, entry(&XRow::scale, m, u.block)), acc[m]);
  } else {
    F s[MB];
    for (int m = 0; m < MB; ++m) s[m] = f_zero();
    for (int c = 0; c < Chunks * kChunk; ++c) {
      const F v = column<T>(codes + c / kChunk * chunk_bytes(T), c % kChunk);
      for (int m = 0; m < MB; ++m) s[m] = f_fma(v, f_set1(x[m].f[k0 + c]), s[m]);
    }
    if constexpr (!is_quantised(T)) {
      for (int m = 0; m < MB; ++m) acc[m] = f_add(acc[m], s[m]);
    } else {
      const F scale = load_scale(w, w.scales, scale_at);
      for (int m = 0; m < MB; ++m) acc[m] = f_fma(s[m], scale, acc[m]);
    }
  }
  if constexpr (T == WeightType::Int4Aff) {
    const F offset = load_scale(w, w.offsets, scale_at);
    for (int c = 0; c < Chunks; ++c)
      for (int m = 0; m < MB; ++m)
        acc[m] = f_fma(entry(&XRow::sum, m, u.chunk + c), offset, acc[m]);
  }
}

// How far ahead of the sum weights are brought into the second cache; most first ones have no room
// for as many misses as cover memory's latency. The hardware's own streams end at every page.
constexpr std::int64_t kAhead = 16384;  // bytes of codes

// Always inline: GCC takes a function that only prefetches for one without effect, and drops calls.
[[gnu::always_inline]] inline void prefetch(const std::uint8_t* p, std::int64_t bytes,
                                            bool first_cache) {
  if (first_cache)
    for (std::int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(p + b, 0, 3);
  else
    for (std::int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(p + b, 0, 2);
}

// Brings what a thread streams next, up to the tile before `ahead`, while it works on tile t.
struct Ahead {
  const TileWeight& w;
  std::int64_t bytes, scales, scale_bytes;
  bool first_cache = first_cache_streams();
  inline Ahead(const TileWeight& weight, std::int64_t t, std::int64_t ahead)
      : w(weight),
        bytes((ahead - t) * w.tile_bytes - kAhead),        // of this tile on
        scales(kAhead * w.groups / w.tile_bytes * kTile),  // from those in use to the codes' own
        scale_bytes(w.scales_f16 ? 2 : 4) {}
  template <WeightType T>
  [[gnu::always_inline]] inline void bring(const std::uint8_t* codes, const Unit& u,
                                           std::int64_t scale_at) const {
    const std::int64_t offset = static_cast<std::int64_t>(u.chunk) * chunk_bytes(T);
    if (offset >= bytes) return;
    prefetch(codes + offset + kAhead, u.chunks * chunk_bytes(T), first_cache);
    if (is_quantised(T)) prefetch(w.scales + (scale_at + scales) * scale_bytes, 1, first_cache);
    if (T == WeightType::Int4Aff)
      prefetch(w.offsets + (scale_at + scales) * scale_bytes, 1, first_cache);
  }
};

template <WeightType T, Activations A, int MB>
inline void sum_pieces(const TileWeight& w, std::int64_t t, std::int64_t ahead, const XRow* x,
                       F (*piece)[MB]) {
  const std::uint8_t* codes = w.codes + t * w.tile_bytes;
  const Ahead next(w, t, ahead);
  const std::int64_t scales = t * w.groups * kTile;
  const Unit *u = w.units, *const end = u + w.unit_count;
  for (int p = 0; p < w.pieces; ++p) {
    F acc[MB], total[MB];
    for (int m = 0; m < MB; ++m) acc[m] = total[m] = f_zero();
    for (; u != end && u->piece == p; ++u) {
      const std::uint8_t* at = codes + static_cast<std::int64_t>(u->chunk) * chunk_bytes(T);
      const std::int64_t scale_at = scales + static_cast<std::int64_t>(u->group) * kTile;
      next.bring<T>(codes, *u, scale_at);
      if (u->chunks == 2)
        add_unit<T, A, MB, 2>(w, at, *u, scale_at, x, acc);
      else
        add_unit<T, A, MB, 1>(w, at, *u, scale_at, x, acc);
      if (u->closes)
        for (int m = 0; m < MB; ++m) total[m] = f_add(total[m], acc[m]), acc[m] = f_zero();
    }
    for (int m = 0; m < MB; ++m) piece[p][m] = total[m];
  }
}

// The sum of the first `rows` ends in piece[0].
template <int MB>
inline void add_pieces(F (*piece)[MB], int pieces, int rows = MB) {
  for (int n = pieces; n > 1; n /= 2)
    for (int i = 0; i < n / 2; ++i)
      for (int m = 0; m < rows; ++m) piece[i][m] = f_add(piece[2 * i][m], piece[2 * i + 1][m]);
}

template <WeightType T, Activations A, int MB>
void tile(const TileWeight& w, std::int64_t t, std::int64_t ahead, const XRow* x, float* out) {
  F piece[kRowParallelPieces][MB];
  sum_pieces<T, A, MB>(w, t, ahead, x, piece);
  add_pieces<MB>(piece, w.pieces);
  for (int m = 0; m < MB; ++m) f_store(out + m * kTile, piece[0][m]);
}

template <WeightType T, Activations A, int MB>
void tile_pieces(const TileWeight& w, std::int64_t t, const XRow* x, float* const* out) {
  F piece[kRowParallelPieces][MB];
  sum_pieces<T, A, MB>(w, t, 0, x, piece);
  for (int p = 0; p < w.pieces; ++p)
    for (int m = 0; m < MB; ++m) f_store(out[m] + p * kTile, piece[p][m]);
}

}  // namespace
}  // namespace nibble::cpu
