// Dot products of codes with integers of x, exact, for AVX2 and AVX-512 with and without VNNI: the
// vector headers say what V is. Codes: kernels.h, TileWeight; a vector of a chunk is 64 bytes, of
// which a half takes its part. Included after the vector header.
namespace nibble::cpu {
namespace {

// Bytes split a code vector in three instructions, but int16 then has two sums a row of x. 16-bit
// pairs split it in seven and have one: better from kPairsFrom rows on.
#ifdef NIBBLE_VNNI
constexpr int kPairsFrom = 3;
inline V add_pairs(V sum, V x, V y) { return v_dpwssd(sum, x, y); }

template <int L, int MB, int Chunks>
inline void add_bytes(const std::uint8_t* codes, const XRow* x, std::int64_t k0, V* sum) {
  // Even and odd quads apart where registers allow: shorter dependency chains.
  constexpr int kWays = 2 * L * MB <= kRegisters / 2 ? 2 : 1;
  const V nibble = v_set8(15);
  V lo[MB][2], hi[MB][2];
  for (int m = 0; m < MB; ++m) lo[m][0] = sum[m], lo[m][1] = hi[m][0] = hi[m][1] = v_zero();
  for (int v = 0; v < Chunks * 4; ++v) {
    const V w = v_load(codes + v * 64);
    const V w0 = v_and(w, nibble), w1 = v_and(v_shr16(w, 4), nibble);
    for (int m = 0; m < MB; ++m) {
      const std::int64_t k = k0 + v * 8;
      V &lo1 = lo[m][kWays - 1], &hi1 = hi[m][kWays - 1];
      lo[m][0] = v_dpbusd(lo[m][0], w0, word(lo_word<MB>(x, m, k)));
      lo1 = v_dpbusd(lo1, w1, word(lo_word<MB>(x, m, k + 4)));
      if (L == 2) {
        hi[m][0] = v_dpbusd(hi[m][0], w0, word(x[m].hi + k));
        hi1 = v_dpbusd(hi1, w1, word(x[m].hi + k + 4));
      }
    }
  }
  for (int m = 0; m < MB; ++m) {
    sum[m] = v_add(lo[m][0], lo[m][1]);
    if (L == 2) sum[m] = v_add(sum[m], v_shl(v_add(hi[m][0], hi[m][1]), 8));
  }
}
#else
constexpr int kPairsFrom = 2;
inline V add_pairs(V sum, V x, V y) { return v_add(sum, v_madd(x, y)); }

// A chunk is 8 steps of 4 columns; a 16-bit lane takes 8 sums of at most 2 * 15 * 128 = 3840,
// which stays below 32767.
template <int L, int MB, int Chunks>
inline void add_bytes(const std::uint8_t* codes, const XRow* x, std::int64_t k0, V* sum) {
  const V nibble = v_set8(15), ones = v_set16(1);
  for (int c = 0; c < Chunks; ++c) {
    V lo[MB], hi[MB];
    for (int m = 0; m < MB; ++m) lo[m] = hi[m] = v_zero();
    for (int v = 0; v < 4; ++v) {
      const V w = v_load(codes + c * 256 + v * 64);
      const V w0 = v_and(w, nibble), w1 = v_and(v_shr16(w, 4), nibble);
      for (int m = 0; m < MB; ++m) {
        const std::int64_t k = k0 + c * 32 + v * 8;
        lo[m] = v_add16(lo[m], v_maddubs(w0, word(lo_word<MB>(x, m, k))));
        lo[m] = v_add16(lo[m], v_maddubs(w1, word(lo_word<MB>(x, m, k + 4))));
        if (L == 2) {
          hi[m] = v_add16(hi[m], v_maddubs(w0, word(x[m].hi + k)));
          hi[m] = v_add16(hi[m], v_maddubs(w1, word(x[m].hi + k + 4)));
        }
      }
    }
    for (int m = 0; m < MB; ++m) {
      sum[m] = v_add(sum[m], v_madd(lo[m], ones));
      if (L == 2) sum[m] = v_add(sum[m], v_shl(v_madd(hi[m], ones), 8));
    }
  }
}
#endif

template <int MB, int Chunks>
inline void add_int4_pairs(const std::uint8_t* codes, const XRow* x, std::int64_t k0, V* sum) {
  const V nibble = v_set16(15);
  for (int v = 0; v < Chunks * 4; ++v) {
    const V w = v_load(codes + v * 64);
    const V part[4] = {v_and(w, nibble), v_and(v_shr16(w, 4), nibble), v_and(v_shr16(w, 8), nibble),
                       v_shr16(w, 12)};
    for (int i = 0; i < 4; ++i)
      for (int m = 0; m < MB; ++m)
        sum[m] = add_pairs(sum[m], part[i], word(q_word<MB>(x, m, k0 + v * 8 + i * 2)));
  }
}

template <int L, int MB, int Chunks, bool Centred>
inline void dot_int4(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  for (int h = 0; h < kHalves; ++h) {
    V sum[MB];
    for (int m = 0; m < MB; ++m) sum[m] = v_zero();
    if (Centred)
      for (int c = 0; c < Chunks; ++c)
        for (int m = 0; m < MB; ++m)
          sum[m] = v_add(sum[m], word(minus8_word<MB>(x, m, k0 / kChunk + c)));
    if constexpr (L == 1 || MB < kPairsFrom)
      add_bytes<L, MB, Chunks>(codes + h * 32, x, k0, sum);
    else
      add_int4_pairs<MB, Chunks>(codes + h * 32, x, k0, sum);
    for (int m = 0; m < MB; ++m) half(s[m], h) = sum[m];
  }
}

template <int L, int MB, int Chunks>
inline void dot_int8(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  for (int h = 0; h < kHalves; ++h) {
    V sum[MB];
    for (int m = 0; m < MB; ++m) sum[m] = v_zero();
#ifdef NIBBLE_VNNI
    if constexpr (L == 1) {  // signed codes as code + 128 (one xor), less 128 times the sum of q
      const V bias = v_set8(0x80);
      for (int c = 0; c < Chunks; ++c)
        for (int m = 0; m < MB; ++m)
          sum[m] = v_add(sum[m], v_shl(word(minus8_word<MB>(x, m, k0 / kChunk + c)), 4));
      for (int v = 0; v < Chunks * 8; ++v) {
        const V w = v_xor(v_load(codes + v * 64 + h * 32), bias);
        for (int m = 0; m < MB; ++m)
          sum[m] = v_dpbusd(sum[m], w, word(lo_word<MB>(x, m, k0 + v * 4)));
      }
      for (int m = 0; m < MB; ++m) half(s[m], h) = sum[m];
      continue;
    }
#endif
    for (int v = 0; v < Chunks * 8; ++v) {
      const V w = v_load(codes + v * 64 + h * 32);
      const V even = v_sar16(v_shl16(w, 8), 8), odd = v_sar16(w, 8);
      for (int m = 0; m < MB; ++m) {
        const std::int64_t k = k0 + v / 2 * 8 + v % 2 * 2;
        sum[m] = add_pairs(sum[m], even, word(q_word<MB>(x, m, k)));
        sum[m] = add_pairs(sum[m], odd, word(q_word<MB>(x, m, k + 4)));
      }
    }
    for (int m = 0; m < MB; ++m) half(s[m], h) = sum[m];
  }
}

}  // namespace
}  // namespace nibble::cpu
