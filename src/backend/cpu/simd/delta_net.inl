// The gated delta net: causal convolution, gates, the delta rule, gated RMSNorm.
//
// delta_rule holds S as blocks of 16 columns, [key_dim][16]: a column of S is a lane, so that
// every sum over key_dim stays in its lane and a block (8 KB at key_dim 128) in the first cache
// while all rows of a call pass over it. A row reads a block once: the update of the row before is
// made on the way. Bytes moved a row: 2 key_dim of q and k, 33 of v, out and gates, times 4; the
// state once a call. Sums over key_dim run in two chains, even and odd, then even + odd.
namespace nibble::cpu {
namespace {

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), log1p(t) = 2 atanh(t / (2 + t)) by its series: the
// argument is at most 1/3, and nine terms leave 3e-10.
inline F f_softplus(F x) {
  const F negative = f_min(x, f_sub(f_zero(), x));
  const F t = f_exp(negative);
  const F s = f_div(t, f_add(f_set1(2.0f), t)), s2 = f_mul(s, s);
  F p = f_set1(1.0f / 17);
  for (int n = 15; n >= 1; n -= 2) p = f_fma(p, s2, f_set1(1.0f / static_cast<float>(n)));
  return f_fma(f_add(s, s), p, f_max(f_zero(), x));
}

void conv(const ConvTask& t) {
  const std::int64_t past = t.taps - 1, n = t.channels;
  // Row r of the sequence; the last rows of earlier calls are those before 0.
  const auto row = [&](std::int64_t r) {
    return load_upto(r >= 0 ? t.u + r * t.pitch : t.state + (past + r) * t.pitch, n);
  };
  for (std::int64_t r = 0; r < t.rows; ++r) {
    F y = f_mul(load_upto(t.weight, n), row(r - past));
    for (std::int64_t i = 1; i < t.taps; ++i)
      y = f_fma(load_upto(t.weight + i * t.pitch, n), row(r - past + i), y);
    store_upto(t.y + r * t.pitch, f_silu(y), n);
  }
  for (std::int64_t i = 0; i < past; ++i)  // reads above what it has written
    store_upto(t.state + i * t.pitch, row(t.rows - past + i), n);
}

inline float dot(const float* a, const float* b, std::int64_t n) {
  F s = f_zero();
  for (std::int64_t d = 0; d < n; d += 16)
    s = f_fma(load_upto(a + d, n - d), load_upto(b + d, n - d), s);
  return reduce_add(s);
}

inline void scale_to(const float* x, std::int64_t n, float scale, float* y) {
  for (std::int64_t d = 0; d < n; d += 16)
    store_upto(y + d, f_mul(load_upto(x + d, n - d), f_set1(scale)), n - d);
}

float unit_qk(const float* q, const float* k, std::int64_t key_dim, float eps, float* qn,
              float* kn) {
  const float size = __builtin_sqrtf(static_cast<float>(key_dim));
  scale_to(q, key_dim, 1.0f / (__builtin_sqrtf(dot(q, q, key_dim) + eps) * size), qn);
  scale_to(k, key_dim, 1.0f / __builtin_sqrtf(dot(k, k, key_dim) + eps), kn);
  return dot(kn, qn, key_dim);
}

void delta_gates(const float* a, const float* b, std::int64_t n, std::int64_t pitch, float a_log,
                 float dt_bias, float* alpha, float* beta) {
  const F rate = f_sub(f_zero(), f_exp(f_set1(a_log)));
  for (std::int64_t r = 0; r < n; r += 16) {
    float x[16] = {}, y[16] = {};
    for (std::int64_t i = 0; i < 16 && r + i < n; ++i)
      x[i] = a[(r + i) * pitch] + dt_bias, y[i] = b[(r + i) * pitch];
    store_upto(alpha + r, f_exp(f_mul(rate, f_softplus(f_load(x)))), n - r);
    store_upto(beta + r, f_sigmoid(f_load(y)), n - r);
  }
}

void delta_rule(const DeltaTask& t) {
  F d = f_zero(), decay = f_zero();
  const float* key = nullptr;  // of the row before, whose update is still to be made
  const auto updated = [&](std::int64_t i) {
    const F s = f_fma(f_set1(key[i]), d, f_mul(decay, f_load(t.state + i * 16)));
    f_store(t.state + i * 16, s);
    return s;
  };
  for (std::int64_t r = 0; r < t.rows; ++r) {
    const float *k = t.k + r * t.key_dim, *q = t.q + r * t.key_dim;
    F p[2] = {f_zero(), f_zero()}, s[2] = {f_zero(), f_zero()};
    const auto pass = [&](auto&& load) {
      for (std::int64_t i = 0; i + 1 < t.key_dim; i += 2)
        for (int j = 0; j < 2; ++j) {
          const F x = load(i + j);
          p[j] = f_fma(x, f_set1(k[i + j]), p[j]), s[j] = f_fma(x, f_set1(q[i + j]), s[j]);
        }
      if (t.key_dim % 2 != 0) {
        const std::int64_t i = t.key_dim - 1;
        const F x = load(i);
        p[0] = f_fma(x, f_set1(k[i]), p[0]), s[0] = f_fma(x, f_set1(q[i]), s[0]);
      }
    };
    if (key == nullptr)
      pass([&](std::int64_t i) { return f_load(t.state + i * 16); });
    else
      pass(updated);
    decay = f_set1(t.alpha[r]), key = k;
    const F v = load_upto(t.v + r * t.v_pitch, t.columns);
    d = f_mul(f_set1(t.beta[r]), f_sub(v, f_mul(decay, f_add(p[0], p[1]))));
    const F o = f_fma(f_set1(t.kq[r]), d, f_mul(decay, f_add(s[0], s[1])));
    store_upto(t.out + r * t.out_pitch, o, t.columns);
  }
  for (std::int64_t i = 0; i < t.key_dim; ++i) updated(i);
}

void gated_rmsnorm(const float* o, const float* z, const float* weight, float eps, std::int64_t dim,
                   float* u) {
  const F inv = f_set1(1.0f / __builtin_sqrtf(sum_squares(o, dim) / static_cast<float>(dim) + eps));
  for (std::int64_t d = 0; d < dim; d += 16) {
    const F n = f_mul(f_mul(load_upto(o + d, dim - d), inv), load_upto(weight + d, dim - d));
    store_upto(u + d, f_mul(n, f_silu(load_upto(z + d, dim - d))), dim - d);
  }
}

}  // namespace
}  // namespace nibble::cpu
