// Dot products of codes with integers of x, exact, for AVX2 and AVX-512 with and without VNNI: the
// vector headers say what V is. Codes: kernels.h, TileWeight; a vector of a chunk is 64 bytes, of
// which a half takes its part. H halves go together, sum i being that of row i / H and half i % H:
// all of them where there is one row, whose words they share, else one. Included after the vector
// header.
namespace nibble::cpu {
namespace {

// Bytes split a code vector in three instructions, but int16 then has two sums a row of x. 16-bit
// pairs split it in seven and have one: better from kPairsFrom rows on.
#ifdef NIBBLE_VNNI
constexpr int kPairsFrom = 3;
inline V add_pairs(V sum, V x, V y) { return v_dpwssd(sum, x, y); }

template <int L, int MB, int Chunks, int H>
inline void add_bytes(const std::uint8_t* codes, const XRow* x, std::int64_t k0, V* sum) {
  // Even and odd quads apart where registers allow: shorter dependency chains, and the odd ones'
  // codes stay the upper halves of their bytes, 16 times as large, which is taken from their sum.
  constexpr int kSums = MB * H, kWays = 2 * L * kSums <= kRegisters / 2 ? 2 : 1;
  const V nibble = v_set8(15), upper = v_set8(0xf0);
  V lo[kSums][2], hi[kSums][2];
  for (int i = 0; i < kSums; ++i) lo[i][0] = sum[i], lo[i][1] = hi[i][0] = hi[i][1] = v_zero();
  for (int v = 0; v < Chunks * 4; ++v) {
    V w0[H], w1[H];
    for (int h = 0; h < H; ++h) {
      const V w = v_load(codes + v * 64 + h * 32);
      w0[h] = v_and(w, nibble);
      w1[h] = kWays == 2 ? v_and(w, upper) : v_and(v_shr16(w, 4), nibble);
    }
    for (int m = 0; m < MB; ++m) {
      const std::int64_t k = k0 + v * 8;
      for (int h = 0; h < H; ++h) {
        V &lo1 = lo[m * H + h][kWays - 1], &hi1 = hi[m * H + h][kWays - 1];
        lo[m * H + h][0] = v_dpbusd(lo[m * H + h][0], w0[h], word(lo_word<MB>(x, m, k)));
        lo1 = v_dpbusd(lo1, w1[h], word(lo_word<MB>(x, m, k + 4)));
        if (L == 2) {
          hi[m * H + h][0] = v_dpbusd(hi[m * H + h][0], w0[h], word(x[m].hi + k));
          hi1 = v_dpbusd(hi1, w1[h], word(x[m].hi + k + 4));
        }
      }
    }
  }
  for (int i = 0; i < kSums; ++i) {
    V even = lo[i][0], odd = lo[i][1];
    if (L == 2) even = v_add(even, v_shl(hi[i][0], 8)), odd = v_add(odd, v_shl(hi[i][1], 8));
    sum[i] = v_add(even, kWays == 2 ? v_sar(odd, 4) : odd);
  }
}
#else
constexpr int kPairsFrom = 2;
inline V add_pairs(V sum, V x, V y) { return v_add(sum, v_madd(x, y)); }

// A chunk is 8 steps of 4 columns; a 16-bit lane takes 8 sums of at most 2 * 15 * 128 = 3840,
// which stays below 32767.
template <int L, int MB, int Chunks, int H>
inline void add_bytes(const std::uint8_t* codes, const XRow* x, std::int64_t k0, V* sum) {
  constexpr int kSums = MB * H;
  const V nibble = v_set8(15), ones = v_set16(1);
  for (int c = 0; c < Chunks; ++c) {
    V lo[kSums], hi[kSums];
    for (int i = 0; i < kSums; ++i) lo[i] = hi[i] = v_zero();
    for (int v = 0; v < 4; ++v) {
      V w0[H], w1[H];
      for (int h = 0; h < H; ++h) {
        const V w = v_load(codes + c * 256 + v * 64 + h * 32);
        w0[h] = v_and(w, nibble), w1[h] = v_and(v_shr16(w, 4), nibble);
      }
      const auto add = [](V& to, V codes_, V xs) { to = v_add16(to, v_maddubs(codes_, xs)); };
      for (int m = 0; m < MB; ++m) {
        const std::int64_t k = k0 + c * 32 + v * 8;
        for (int h = 0; h < H; ++h) {
          add(lo[m * H + h], w0[h], word(lo_word<MB>(x, m, k)));
          add(lo[m * H + h], w1[h], word(lo_word<MB>(x, m, k + 4)));
          if (L == 2) {
            add(hi[m * H + h], w0[h], word(x[m].hi + k));
            add(hi[m * H + h], w1[h], word(x[m].hi + k + 4));
          }
        }
      }
    }
    for (int i = 0; i < kSums; ++i) {
      sum[i] = v_add(sum[i], v_madd(lo[i], ones));
      if (L == 2) sum[i] = v_add(sum[i], v_shl(v_madd(hi[i], ones), 8));
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

template <int MB>
inline constexpr int kTogether = MB == 1 ? kHalves : 1;

template <int L, int MB, int Chunks, bool Centred>
inline void dot_int4(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  constexpr int H = kTogether<MB>;
  for (int first = 0; first < kHalves; first += H) {
    V sum[MB * H];
    for (int i = 0; i < MB * H; ++i) sum[i] = v_zero();
    if (Centred)
      for (int c = 0; c < Chunks; ++c)
        for (int i = 0; i < MB * H; ++i)
          sum[i] = v_add(sum[i], word(minus8_word<MB>(x, i / H, k0 / kChunk + c)));
    if constexpr (L == 1 || MB < kPairsFrom)
      add_bytes<L, MB, Chunks, H>(codes + first * 32, x, k0, sum);
    else
      add_int4_pairs<MB, Chunks>(codes + first * 32, x, k0, sum);
    for (int i = 0; i < MB * H; ++i) half(s[i / H], first + i % H) = sum[i];
  }
}

template <int L, int MB, int Chunks>
inline void dot_int8(const std::uint8_t* codes, const XRow* x, std::int64_t k0, I* s) {
  constexpr int H = kTogether<MB>;
  for (int first = 0; first < kHalves; first += H) {
    V sum[MB * H];
    for (int i = 0; i < MB * H; ++i) sum[i] = v_zero();
    const auto code = [&](int v, int h) { return v_load(codes + v * 64 + (first + h) * 32); };
#ifdef NIBBLE_VNNI
    if constexpr (L == 1) {  // signed codes as code + 128 (one xor), less 128 times the sum of q
      const V bias = v_set8(0x80);
      for (int c = 0; c < Chunks; ++c)
        for (int i = 0; i < MB * H; ++i)
          sum[i] = v_add(sum[i], v_shl(word(minus8_word<MB>(x, i / H, k0 / kChunk + c)), 4));
      for (int v = 0; v < Chunks * 8; ++v)
        for (int h = 0; h < H; ++h) {
          const V w = v_xor(code(v, h), bias);
          for (int m = 0; m < MB; ++m)
            sum[m * H + h] = v_dpbusd(sum[m * H + h], w, word(lo_word<MB>(x, m, k0 + v * 4)));
        }
      for (int i = 0; i < MB * H; ++i) half(s[i / H], first + i % H) = sum[i];
      continue;
    }
#endif
    for (int v = 0; v < Chunks * 8; ++v)
      for (int h = 0; h < H; ++h) {
        const V w = code(v, h), even = v_sar16(v_shl16(w, 8), 8), odd = v_sar16(w, 8);
        for (int m = 0; m < MB; ++m) {
          const std::int64_t k = k0 + v / 2 * 8 + v % 2 * 2;
          V& to = sum[m * H + h];
          to = add_pairs(add_pairs(to, even, word(q_word<MB>(x, m, k))), odd,
                         word(q_word<MB>(x, m, k + 4)));
        }
      }
    for (int i = 0; i < MB * H; ++i) half(s[i / H], first + i % H) = sum[i];
  }
}

}  // namespace
}  // namespace nibble::cpu
