// attention of one query head over one split of at most 512 positions, and the combination of
// splits. Keys lie 16 positions side by side, so that a score is a lane and its sum over head_dim
// runs in ascending order; values lie by position, so that the output's dims are the lanes.
// Online softmax over blocks of 64 positions, anchored at absolute positions.
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

// p[0..63]: weights of a block's positions (times their scales); rows: how many of them exist.
template <bool kFixed>
inline void add_values(const AttentionTask& t, std::int64_t position, int rows, const float* p,
                       float shrink) {
  constexpr int kLanes = 4;  // vectors of dims at a time
  float* out = t.out + 2;
  for (std::int64_t d = 0; d < t.head_stride; d += kLanes * 16) {
    const int n = static_cast<int>((t.head_stride - d) / 16);
    const int lanes = n < kLanes ? n : kLanes;
    F o[kLanes];
    for (int i = 0; i < kLanes; ++i)
      o[i] = i < lanes ? f_mul(f_load(out + d + i * 16), f_set1(shrink)) : f_zero();
    for (int r = 0; r < rows; ++r) {
      const F w = f_set1(p[r]);
      const std::int64_t at = (position + r) * t.head_stride + d;
      if (lanes == kLanes)
        for (int i = 0; i < kLanes; ++i)
          o[i] = f_fma(w, load_kv<kFixed>(t.values, at + i * 16), o[i]);
      else
        for (int i = 0; i < lanes; ++i)
          o[i] = f_fma(w, load_kv<kFixed>(t.values, at + i * 16), o[i]);
    }
    for (int i = 0; i < lanes; ++i) f_store(out + d + i * 16, o[i]);
  }
}

template <bool kFixed>
inline void attend(const AttentionTask& t) {
  constexpr int kSub = kAttentionBlock / 16;
  const float none = -__builtin_huge_valf();
  float index[16];
  for (int i = 0; i < 16; ++i) index[i] = static_cast<float>(i);
  float top = none;
  F sum = f_zero();
  for (std::int64_t d = 0; d < t.head_stride; d += 16) f_store(t.out + 2 + d, f_zero());
  for (std::int64_t b = t.begin; b < t.end; b += kAttentionBlock) {
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
    const float block_max = reduce_max(block_top);
    const float next = block_max > top ? block_max : top;
    const float shrink = top == none ? 0.0f : exp1(top - next);
    sum = f_mul(sum, f_set1(shrink));
    float p[kAttentionBlock];
    for (int i = 0; i < kSub; ++i) {
      const F e = f_exp(f_sub(s[i], f_set1(next)));
      f_store(p + 16 * i, kFixed ? f_mul(e, f_load(t.value_scales + b + 16 * i)) : e);
      sum = f_add(sum, e);
    }
    add_values<kFixed>(t, b, rows, p, shrink);
    top = next;
  }
  t.out[0] = top;
  t.out[1] = reduce_add(sum);
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
