// Row-wise kernels: rounding of inputs, add + RMSNorm, SwiGLU, RoPE. Sums of a head run in 16 lanes
// over ascending columns, then the lanes are added as a fixed tree; those of a row as
// sum_squares() says.
namespace nibble::cpu {
namespace {

inline F load_tail(const float* p, std::int64_t n) {  // n < 16 values, zeros after
  float t[16] = {};
  for (std::int64_t i = 0; i < n; ++i) t[i] = p[i];
  return f_load(t);
}
inline F load_upto(const float* p, std::int64_t n) { return n >= 16 ? f_load(p) : load_tail(p, n); }
inline void store_upto(float* p, F x, std::int64_t n) {
  if (n >= 16) return f_store(p, x);
  float t[16];
  f_store(t, x);
  for (std::int64_t i = 0; i < n; ++i) p[i] = t[i];
}

inline float reduce_add(F x) {
  float t[16];
  f_store(t, x);
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) t[i] = t[i] + t[i + n];
  return t[0];
}

// Sum of squares in 1024 lanes (column mod 1024) over ascending columns. The lanes are added as a
// tree: inside blocks of 64, then the 16 blocks. Sixteen warps of a GPU do it without waiting for
// each other until the last step.
inline float sum_squares(const float* x, std::int64_t k) {
  float block[16] = {};
  for (std::int64_t b = 0; b < 16 && b * 64 < k; ++b) {
    F s[4];
    for (F& v : s) v = f_zero();
    for (std::int64_t c = b * 64; c < k; c += 1024) {
      if (k - c >= 64) {
        for (int i = 0; i < 4; ++i) {
          const F v = f_load(x + c + 16 * i);
          s[i] = f_fma(v, v, s[i]);
        }
      } else {
        for (int i = 0; i < 4 && c + 16 * i < k; ++i) {
          const F v = load_upto(x + c + 16 * i, k - c - 16 * i);
          s[i] = f_fma(v, v, s[i]);
        }
      }
    }
    block[b] = reduce_add(f_add(f_add(s[0], s[2]), f_add(s[1], s[3])));
  }
  return reduce_add(f_load(block));
}

// e^x: 2^n * p(r), r = x - n ln 2 in two steps, p a degree-6 Taylor polynomial on |r| <= ln 2 / 2
// (error below 2e-7 relative). 0 below -87.3; +inf is never produced: x is cut at 88. NaN stays
// NaN.
inline F f_exp(F x) {
  const F low = f_set1(-87.3f);
  const F y = f_max(low, f_min(f_set1(88.0f), x));
  const I n = i_round(f_mul(y, f_set1(1.44269504f)));
  const F nf = f_from_i(n);
  F r = f_fma(nf, f_set1(-0.693145752f), y);
  r = f_fma(nf, f_set1(-1.42860677e-6f), r);
  F p = f_set1(1.0f / 720);
  p = f_fma(p, r, f_set1(1.0f / 120));
  p = f_fma(p, r, f_set1(1.0f / 24));
  p = f_fma(p, r, f_set1(1.0f / 6));
  p = f_fma(p, r, f_set1(0.5f));
  p = f_fma(p, r, f_set1(1.0f));
  p = f_fma(p, r, f_set1(1.0f));
  const F e = f_mul(p, f_bits(i_shl(i_add(n, i_set1(127)), 23)));
  const F finite = f_sub(e, f_if_lt(x, low, e));
  return f_add(finite, f_sub(y, y));  // y - y is 0, or NaN where x is NaN
}

// *scale = largest magnitude / top; returns its reciprocal. The magnitudes are compared as bits, so
// that NaN and Inf win and reach the scale.
inline float fixed_scale(const float* x, std::int64_t n, float top, float* scale) {
  I bits = i_set1(0);
  for (std::int64_t c = 0; c < n; c += 16)
    bits = i_max(bits, i_and(i_bits(load_upto(x + c, n - c)), i_set1(0x7fffffff)));
  const std::int32_t top_bits = i_largest(bits);
  float largest;
  __builtin_memcpy(&largest, &top_bits, 4);
  const bool tiny = largest < 1e-30f;  // 1 / largest would overflow
  *scale = tiny ? 0.0f : largest / top;
  return tiny ? 0.0f : top / largest;
}

inline F cut(F x, F bound) { return f_min(f_max(x, f_sub(f_zero(), bound)), bound); }

void to_int16(const float* x, std::int64_t n, std::int16_t* out, float* scale) {
  const F inv = f_set1(fixed_scale(x, n, 32512.0f, scale));
  for (std::int64_t i = 0; i < n; i += 16)
    i_store16(out + i, i_round(cut(f_mul(f_load(x + i), inv), f_set1(32512.0f))));
}

void prepare(const float* x, std::int64_t k, const std::int32_t* block_chunk, std::int32_t blocks,
             Activations a, bool fixed, bool plain, int stride, const XRow& out) {
  // Other cores have just written x: ask for all of it at once.
  for (std::int64_t c = 0; c < k; c += 16) __builtin_prefetch(x + c);
  const float top = a == Activations::Int8 ? 127.0f : 32512.0f;
  const auto spread = [stride](const void* from, int words, void* to) {
    for (int i = 0; i < words; ++i)
      __builtin_memcpy(static_cast<char*>(to) + i * stride * 4,
                       static_cast<const char*>(from) + i * 4, 4);
  };
  for (std::int32_t b = 0; b < blocks; ++b) {
    const std::int64_t first = static_cast<std::int64_t>(block_chunk[b]) * kChunk;
    const std::int64_t last = static_cast<std::int64_t>(block_chunk[b + 1]) * kChunk;
    if (plain) {
      for (std::int64_t c = first; c < last; c += kChunk) {
        const F u = load_upto(x + c, k - c), v = load_upto(x + c + 16, k - c - 16);
        f_store(out.f + c, u), f_store(out.f + c + 16, v);
        if (!fixed) out.sum[c / kChunk] = reduce_add(f_add(u, v));
      }
    }
    if (!fixed) continue;
    // Cut to the range, so that NaN, which the scale already carries, becomes an integer in it.
    const F bound = f_set1(top);
    float scale;
    const F inv = f_set1(
        fixed_scale(x + first, k - first < last - first ? k - first : last - first, top, &scale));
    out.scale[b * stride] = scale;
    for (std::int64_t c = first; c < last; c += kChunk) {
      I sum = i_set1(0);
      for (int h = 0; h < kChunk; h += 16) {
        const I q = i_round(cut(f_mul(load_upto(x + c + h, k - c - h), inv), bound));
        sum = i_add(sum, q);
        std::int16_t pairs[16];
        std::int8_t bytes[16];
        i_store_pairs(stride == 1 ? out.q + c + h : pairs, q);
        if (stride != 1) spread(pairs, 8, out.q + (c + h) * stride);
        if (a == Activations::Int8) {
          i_store8(stride == 1 ? out.lo + c + h : bytes, q);
          if (stride != 1) spread(bytes, 4, out.lo + (c + h) * stride);
        } else if (stride == 1) {  // several rows take q
          const I hi = i_sar(i_add(q, i_set1(128)), 8);
          i_store8(out.hi + c + h, hi);
          i_store8(out.lo + c + h, i_sub(q, i_shl(hi, 8)));
        }
      }
      const std::int32_t s = i_sum(sum);
      out.minus8[c / kChunk * stride] = -8 * s;
      out.sum[c / kChunk * stride] = static_cast<float>(s) * scale;
    }
  }
}

void add_rmsnorm(const float* residual, const float* delta, const float* weight, float offset,
                 float eps, std::int64_t k, float* u) {
  for (std::int64_t c = 0; c < k; c += 16) {
    F h = load_upto(residual + c, k - c);
    if (delta != nullptr) h = f_add(h, load_upto(delta + c, k - c));
    store_upto(u + c, h, k - c);
  }
  const F inv = f_set1(1.0f / __builtin_sqrtf(sum_squares(u, k) / static_cast<float>(k) + eps));
  for (std::int64_t c = 0; c < k; c += 16) {
    const F g = f_add(load_upto(weight + c, k - c), f_set1(offset));
    store_upto(u + c, f_mul(f_mul(load_upto(u + c, k - c), inv), g), k - c);
  }
}

void add(const float* a, const float* b, std::int64_t n, float* out) {
  for (std::int64_t c = 0; c < n; c += 16) {
    const F x = load_upto(a + c, n - c);
    store_upto(out + c, b != nullptr ? f_add(x, load_upto(b + c, n - c)) : x, n - c);
  }
}

// x / (1 + e^-x): e^-x is cut at e^88, so that no magnitude of x gives inf / inf.
inline F f_silu(F x) { return f_div(x, f_add(f_set1(1.0f), f_exp(f_sub(f_zero(), x)))); }
inline F f_sigmoid(F x) {
  return f_div(f_set1(1.0f), f_add(f_set1(1.0f), f_exp(f_sub(f_zero(), x))));
}

void swiglu(const float* gate, const float* up, float* out) {
  f_store(out, f_mul(f_silu(f_load(gate)), f_load(up)));
}

void rope(const float* x, std::int64_t head_dim, const float* norm, float offset, float eps,
          const float* cos_sin, std::int64_t rotary, float* y) {
  F squares = f_zero();
  for (std::int64_t d = 0; d < head_dim; d += 16) {
    const F v = load_upto(x + d, head_dim - d);
    squares = f_fma(v, v, squares);
  }
  const F inv =
      f_set1(1.0f / __builtin_sqrtf(reduce_add(squares) / static_cast<float>(head_dim) + eps));
  for (std::int64_t d = 0; d < head_dim; d += 16) {
    F v = load_upto(x + d, head_dim - d);
    if (norm != nullptr)
      v = f_mul(f_mul(v, inv), f_add(load_upto(norm + d, head_dim - d), f_set1(offset)));
    store_upto(y + d, v, head_dim - d);
  }
  const std::int64_t half = rotary / 2;
  for (std::int64_t d = 0; d < half; ++d) {
    const float c = cos_sin[2 * d], s = cos_sin[2 * d + 1], a = y[d], b = y[d + half];
    y[d] = a * c - b * s;
    y[d + half] = b * c + a * s;
  }
}

void to_half(const float* x, std::int64_t n, std::uint16_t* out) {
  for (std::int64_t i = 0; i < n; i += 16) f_store_half(out + i, f_load(x + i));
}

}  // namespace
}  // namespace nibble::cpu
