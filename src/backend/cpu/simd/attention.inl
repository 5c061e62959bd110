// attention of one query head over one split of at most 512 positions, and the combination of
// splits. Keys lie 16 positions side by side, so that a score is a lane and its sum over head_dim
// runs in ascending order; values lie by position, so that the output's dims are the lanes.
// Each block of 64 positions, anchored at absolute positions, has its own maximum, sum of weights
// and chain of values; a split puts its blocks together as combine() does its splits.
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

// The split's output dims: a chain over each block's positions (p: their weights, times their
// scales), then one over its blocks (share: their weights).
template <bool kFixed>
inline void add_values(const AttentionTask& t, const float* p, const float* share) {
  constexpr int kLanes = 4;  // vectors of dims at a time
  for (std::int64_t d = 0; d < t.head_stride; d += kLanes * 16) {
    const int n = static_cast<int>((t.head_stride - d) / 16);
    const int lanes = n < kLanes ? n : kLanes;
    F all[kLanes];
    for (int i = 0; i < kLanes; ++i) all[i] = f_zero();
    for (std::int64_t b = t.begin; b < t.end; b += kAttentionBlock) {
      const std::int64_t end = b + kAttentionBlock < t.end ? b + kAttentionBlock : t.end;
      F o[kLanes];
      for (int i = 0; i < kLanes; ++i) o[i] = f_zero();
      for (std::int64_t r = b; r < end; ++r) {
        const F w = f_set1(p[r - t.begin]);
        const std::int64_t at = r * t.head_stride + d;
        if (lanes == kLanes)
          for (int i = 0; i < kLanes; ++i)
            o[i] = f_fma(w, load_kv<kFixed>(t.values, at + i * 16), o[i]);
        else
          for (int i = 0; i < lanes; ++i)
            o[i] = f_fma(w, load_kv<kFixed>(t.values, at + i * 16), o[i]);
      }
      const F of = f_set1(share[(b - t.begin) / kAttentionBlock]);
      for (int i = 0; i < kLanes; ++i) all[i] = f_fma(of, o[i], all[i]);
    }
    for (int i = 0; i < lanes; ++i) f_store(t.out + 2 + d + i * 16, all[i]);
  }
}

template <bool kFixed>
inline void attend(const AttentionTask& t) {
  constexpr int kSub = kAttentionBlock / 16, kBlocks = kAttentionSplit / kAttentionBlock;
  const float none = -__builtin_huge_valf();
  float index[16];
  for (int i = 0; i < 16; ++i) index[i] = static_cast<float>(i);
  float p[kAttentionSplit], tops[kBlocks], sums[kBlocks], share[kBlocks], top = none, total = 0;
  int blocks = 0;
  for (std::int64_t b = t.begin; b < t.end; b += kAttentionBlock, ++blocks) {
    const int rows = static_cast<int>(t.end - b < kAttentionBlock ? t.end - b : kAttentionBlock);
    F s[kSub];
    for (int i = 0; i < kSub; ++i) s[i] = f_zero();
    const std::int64_t pitch = 16 * t.head_dim;  // the cache is padded to whole blocks
    for (std::int64_t d = 0; d < t.head_dim; ++d) {
      const F q = f_set1(t.q[d]);
      for (int i = 0; i < kSub; ++i)
        s[i] = f_fma(q, load_kv<kFixed>(t.keys, (b / 16 + i) * pitch + d * 16), s[i]);
    }
    // Lanes past the end score minus infinity, whatever an earlier sequence left there.
    F block_top = f_set1(none);
    for (int i = 0; i < kSub; ++i) {
      const F end = f_set1(static_cast<float>(rows - 16 * i) - 0.5f);
      const F past = f_if_lt(end, f_load(index), f_set1(none));
      F scale = f_set1(t.scale);
      if constexpr (kFixed) scale = f_mul(scale, f_load(t.key_scales + b + 16 * i));
      s[i] = f_add(f_if_lt(f_load(index), end, f_mul(s[i], scale)), past);
      block_top = f_max(block_top, s[i]);
    }
    tops[blocks] = reduce_max(block_top);
    top = tops[blocks] > top ? tops[blocks] : top;
    F sum = f_zero();
    for (int i = 0; i < kSub; ++i) {
      const F e = f_exp(f_sub(s[i], f_set1(tops[blocks])));
      f_store(p + (b - t.begin) + 16 * i,
              kFixed ? f_mul(e, f_load(t.value_scales + b + 16 * i)) : e);
      sum = f_add(sum, e);
    }
    sums[blocks] = reduce_add(sum);
  }
  for (int b = 0; b < blocks; ++b) {
    share[b] = exp1(tops[b] - top);
    total = __builtin_fmaf(share[b], sums[b], total);
  }
  add_values<kFixed>(t, p, share);
  t.out[0] = top;
  t.out[1] = total;
}

void attention(const AttentionTask& t) { t.fixed ? attend<true>(t) : attend<false>(t); }

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
