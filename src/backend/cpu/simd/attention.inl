// attention of the query heads that share a key-value head over one split of at most 512 positions,
// and the combination of splits. Keys lie 16 positions side by side, so that a score is a lane and
// its sum over head_dim runs in ascending order; values lie by position, so that the output's dims
// are the lanes. Each block of 64 positions, anchored at absolute positions, has its own maximum,
// sum of weights and chain of values; a split puts its blocks together as combine() does its
// splits. Up to kHeadsTogether heads go together, so that a key or value is loaded and widened once
// for them: each head's sums are the same whatever goes beside it.
namespace nibble::cpu {
namespace {

template <bool kFixed>
inline F load_kv(const void* p, std::int64_t at) {
  if constexpr (kFixed) return f_from_i16(static_cast<const std::int16_t*>(p) + at);
  return f_load(static_cast<const float*>(p) + at);
}

inline float reduce_max(F x) {
  float t[16];
  f_store(t, x);
  for (int i = 1; i < 16; ++i) t[0] = t[i] > t[0] ? t[i] : t[0];
  return t[0];
}
inline float exp1(float x) {
  float t[16];
  f_store(t, f_exp(f_set1(x)));
  return t[0];
}

constexpr int kHeadsTogether = 4, kBlocks = kAttentionSplit / kAttentionBlock;

// One head's split: weights (times their values' scales), each block's largest score, sum and
// weight.
struct HeadSplit {
  float p[kAttentionSplit], tops[kBlocks], sums[kBlocks], share[kBlocks];
};

// Vectors of keys or values at a time, so that all heads' sums stay in registers: 1, 2 or 4.
constexpr int beside(int heads) {
  return kHeldVectors >= 4 * heads ? 4 : kHeldVectors >= 2 * heads ? 2 : 1;
}

inline std::int64_t block_end(const AttentionTask& t, std::int64_t b) {
  return b + kAttentionBlock < t.end ? b + kAttentionBlock : t.end;
}

// q . keys of the block at b -> each head's p.
template <bool kFixed, int Heads>
inline void dot_keys(const AttentionTask& t, const float* q, std::int64_t b, HeadSplit* to) {
  constexpr int kVectors = kAttentionBlock / 16, kSub = beside(Heads);
  const std::int64_t pitch = 16 * t.head_dim;  // the cache is padded to whole blocks
  for (int v = 0; v < kVectors; v += kSub) {
    F s[Heads][kSub];
    for (auto& head : s)
      for (F& x : head) x = f_zero();
    for (std::int64_t d = 0; d < t.head_dim; ++d) {
      F k[kSub];
      for (int i = 0; i < kSub; ++i)
        k[i] = load_kv<kFixed>(t.keys, (b / 16 + v + i) * pitch + d * 16);
      for (int h = 0; h < Heads; ++h) {
        const F x = f_set1(q[h * t.head_dim + d]);
        for (int i = 0; i < kSub; ++i) s[h][i] = f_fma(x, k[i], s[h][i]);
      }
    }
    for (int h = 0; h < Heads; ++h)
      for (int i = 0; i < kSub; ++i) f_store(to[h].p + (b - t.begin) + 16 * (v + i), s[h][i]);
  }
}

// The block's dots -> weights.
template <bool kFixed>
inline void weigh(const AttentionTask& t, std::int64_t b, HeadSplit& to) {
  constexpr int kSub = kAttentionBlock / 16;
  const float none = -__builtin_huge_valf();
  const std::int64_t rows = block_end(t, b) - b, block = (b - t.begin) / kAttentionBlock;
  float index[16], *p = to.p + (b - t.begin);
  for (int i = 0; i < 16; ++i) index[i] = static_cast<float>(i);
  // Lanes past the end score minus infinity, whatever an earlier sequence left there.
  F s[kSub], top = f_set1(none), sum = f_zero();
  for (int i = 0; i < kSub; ++i) {
    const F end = f_set1(static_cast<float>(rows - 16 * i) - 0.5f);
    const F past = f_if_lt(end, f_load(index), f_set1(none));
    F scale = f_set1(t.scale);
    if constexpr (kFixed) scale = f_mul(scale, f_load(t.key_scales + b + 16 * i));
    s[i] = f_add(f_if_lt(f_load(index), end, f_mul(f_load(p + 16 * i), scale)), past);
    top = f_max(top, s[i]);
  }
  to.tops[block] = reduce_max(top);
  for (int i = 0; i < kSub; ++i) {
    const F e = f_exp(f_sub(s[i], f_set1(to.tops[block])));
    f_store(p + 16 * i, kFixed ? f_mul(e, f_load(t.value_scales + b + 16 * i)) : e);
    sum = f_add(sum, e);
  }
  to.sums[block] = reduce_add(sum);
}

// Dims [d, d + 16 Lanes) of the outputs: a chain over each block's positions, then one over blocks.
template <bool kFixed, int Heads, int Lanes>
inline void add_values(const AttentionTask& t, const HeadSplit* of, std::int64_t d, float* out) {
  F all[Heads][Lanes];
  for (auto& head : all)
    for (F& x : head) x = f_zero();
  for (std::int64_t b = t.begin; b < t.end; b += kAttentionBlock) {
    F o[Heads][Lanes];
    for (auto& head : o)
      for (F& x : head) x = f_zero();
    for (std::int64_t r = b; r < block_end(t, b); ++r) {
      F v[Lanes];
      for (int i = 0; i < Lanes; ++i)
        v[i] = load_kv<kFixed>(t.values, r * t.head_stride + d + i * 16);
      for (int h = 0; h < Heads; ++h) {
        const F w = f_set1(of[h].p[r - t.begin]);
        for (int i = 0; i < Lanes; ++i) o[h][i] = f_fma(w, v[i], o[h][i]);
      }
    }
    for (int h = 0; h < Heads; ++h) {
      const F share = f_set1(of[h].share[(b - t.begin) / kAttentionBlock]);
      for (int i = 0; i < Lanes; ++i) all[h][i] = f_fma(share, o[h][i], all[h][i]);
    }
  }
  for (int h = 0; h < Heads; ++h)
    for (int i = 0; i < Lanes; ++i) f_store(out + h * t.out_pitch + 2 + d + i * 16, all[h][i]);
}

template <bool kFixed, int Heads>
inline void attend(const AttentionTask& t, std::int64_t head) {
  const float* q = t.q + head * t.head_dim;
  float* out = t.out + head * t.out_pitch;
  HeadSplit heads[Heads];
  for (std::int64_t b = t.begin; b < t.end; b += kAttentionBlock) {
    dot_keys<kFixed, Heads>(t, q, b, heads);
    for (HeadSplit& h : heads) weigh<kFixed>(t, b, h);
  }
  const auto blocks = (t.end - t.begin + kAttentionBlock - 1) / kAttentionBlock;
  for (int h = 0; h < Heads; ++h) {
    HeadSplit& own = heads[h];
    float *top = out + h * t.out_pitch, *total = top + 1;
    *top = own.tops[0], *total = 0;
    for (int b = 1; b < blocks; ++b) *top = own.tops[b] > *top ? own.tops[b] : *top;
    for (int b = 0; b < blocks; ++b) {
      own.share[b] = exp1(own.tops[b] - *top);
      *total = __builtin_fmaf(own.share[b], own.sums[b], *total);
    }
  }
  constexpr int kLanes = beside(Heads);
  std::int64_t d = 0;
  for (; d + 16 * kLanes <= t.head_stride; d += 16 * kLanes)
    add_values<kFixed, Heads, kLanes>(t, heads, d, out);
  for (; d < t.head_stride; d += 16) add_values<kFixed, Heads, 1>(t, heads, d, out);
}

template <bool kFixed>
inline void attend_all(const AttentionTask& t) {
  for (std::int64_t h = 0; h < t.heads; h += kHeadsTogether) {
    const std::int64_t n = t.heads - h;
    if (n >= 4)
      attend<kFixed, 4>(t, h);
    else if (n == 3)
      attend<kFixed, 3>(t, h);
    else if (n == 2)
      attend<kFixed, 2>(t, h);
    else
      attend<kFixed, 1>(t, h);
  }
}

void attention(const AttentionTask& t) { t.fixed ? attend_all<true>(t) : attend_all<false>(t); }

void combine(const float* parts, std::int64_t splits, std::int64_t pitch, std::int64_t head_dim,
             const float* gate, float* out) {
  float top = parts[0], total = 0;
  for (std::int64_t i = 1; i < splits; ++i) top = parts[i * pitch] > top ? parts[i * pitch] : top;
  for (std::int64_t i = 0; i < splits; ++i) {
    const float* part = parts + i * pitch;
    const float w = exp1(part[0] - top);
    total = __builtin_fmaf(w, part[1], total);
    for (std::int64_t d = 0; d < head_dim; d += 16) {
      const F old = i == 0 ? f_zero() : load_upto(out + d, head_dim - d);
      store_upto(out + d, f_fma(f_set1(w), f_load(part + 2 + d), old), head_dim - d);
    }
  }
  for (std::int64_t d = 0; d < head_dim; d += 16) {
    F o = f_div(load_upto(out + d, head_dim - d), f_set1(total));
    if (gate != nullptr) o = f_mul(o, f_sigmoid(load_upto(gate + d, head_dim - d)));
    store_upto(out + d, o, head_dim - d);
  }
}

}  // namespace
}  // namespace nibble::cpu
