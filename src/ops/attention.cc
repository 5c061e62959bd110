#include "ops/attention.h"

#include <algorithm>
#include <cmath>

#include "ops/linear.h"

namespace nibble {
namespace {

void check_rows(const char* op, const RowPlace* rows, std::int64_t m, const KvCache* cache,
                std::int64_t layer, std::int64_t heads) {
  require(m > 0 && rows != nullptr && cache != nullptr, "[{}] expected rows and a cache, got null",
          op);
  const KvShape& s = cache->shape();
  require(s.head_dim > 0 && s.head_dim % 8 == 0 && s.head_dim <= 512,
          "[{}] expected head_dim a multiple of 8 up to 512, got {}", op, s.head_dim);
  require(heads > 0 && heads % s.kv_heads == 0,
          "[{}] expected heads a multiple of {} kv heads, got {}", op, s.kv_heads, heads);
  require(layer >= 0 && layer < s.layers, "[{}] expected layer < {}, got {}", op, s.layers, layer);
  for (std::int64_t i = 0; i < m; ++i)
    require(rows[i].slot >= 0 && rows[i].slot < s.slots && rows[i].position >= 0 &&
                rows[i].position < s.context,
            "[{}] expected slot < {} and position < {}, got slot {} position {}", op, s.slots,
            s.context, rows[i].slot, rows[i].position);
}

}  // namespace

void check(const RopeCacheArgs& a) {
  check_rows("rope_cache", a.rows, a.m, a.cache, a.layer, a.heads);
  const std::int64_t hd = a.cache->shape().head_dim;
  require(a.rotary > 0 && a.rotary % 2 == 0 && a.rotary <= hd,
          "[rope_cache] expected an even rotary size up to {}, got {}", hd, a.rotary);
  require(a.q != nullptr && a.k != nullptr && a.v != nullptr && a.cos_sin != nullptr &&
              a.q_out != nullptr,
          "[rope_cache] expected q, k, v, cos_sin and q_out, got null");
  const std::int64_t pitch = a.q_pitch > 0 ? a.q_pitch : hd;
  require(pitch >= hd, "[rope_cache] expected a pitch of q of at least {}, got {}", hd, pitch);
  const auto bytes = static_cast<std::size_t>(a.m * a.heads * hd) * sizeof(float);
  const auto q_bytes = static_cast<std::size_t>((a.m * a.heads - 1) * pitch + hd) * sizeof(float);
  const auto kv_bytes =
      static_cast<std::size_t>(a.m * a.cache->shape().kv_heads * hd) * sizeof(float);
  require(!overlap(a.q_out, bytes, a.q, q_bytes) && !overlap(a.q_out, bytes, a.k, kv_bytes) &&
              !overlap(a.q_out, bytes, a.v, kv_bytes),
          "[rope_cache] expected q_out apart from q, k and v, got an alias");
}

void check(const AttentionArgs& a) {
  check_rows("attention", a.rows, a.m, a.cache, a.layer, a.heads);
  require(a.q != nullptr && a.out != nullptr, "[attention] expected q and out, got null");
  const auto bytes =
      static_cast<std::size_t>(a.m * a.heads * a.cache->shape().head_dim) * sizeof(float);
  require(!overlap(a.out, bytes, a.q, bytes),
          "[attention] expected out apart from q, got an alias");
  if (a.gate == nullptr) return;
  const std::int64_t hd = a.cache->shape().head_dim;
  require(a.gate_pitch >= hd, "[attention] expected a pitch of the gate of at least {}, got {}", hd,
          a.gate_pitch);
  require(
      !overlap(a.out, bytes, a.gate,
               static_cast<std::size_t>((a.m * a.heads - 1) * a.gate_pitch + hd) * sizeof(float)),
      "[attention] expected out apart from gate, got an alias");
}

void check(const RopeCacheArgs& rope, const AttentionArgs& a) {
  check(rope), check(a);
  require(a.q == rope.q_out && a.m == rope.m && a.heads == rope.heads && a.cache == rope.cache &&
              a.layer == rope.layer &&
              std::equal(a.rows, a.rows + a.m, rope.rows,
                         [](RowPlace x, RowPlace y) {
                           return x.slot == y.slot && x.position == y.position;
                         }),
          "[rope_attention] expected attention of the rows that are rotated");
}

bool own_slots(std::span<const RowPlace> rows) {
  for (std::size_t i = 1; i < rows.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      if (rows[i].slot == rows[j].slot) return false;
  return true;
}

void rope_reference(const float* x, std::int64_t head_dim, const float* norm, bool unit_offset,
                    double eps, const float* cos_sin, std::int64_t rotary, double* y) {
  double sum = 0;
  for (std::int64_t d = 0; d < head_dim; ++d) sum += static_cast<double>(x[d]) * x[d];
  const double inv = 1.0 / std::sqrt(sum / static_cast<double>(head_dim) + eps);
  for (std::int64_t d = 0; d < head_dim; ++d)
    y[d] = norm != nullptr ? x[d] * inv * ((unit_offset ? 1.0 : 0.0) + norm[d]) : x[d];
  const std::int64_t half = rotary / 2;
  for (std::int64_t d = 0; d < half; ++d) {
    const double c = cos_sin[2 * d], s = cos_sin[2 * d + 1], a = y[d], b = y[d + half];
    y[d] = a * c - b * s;
    y[d + half] = b * c + a * s;
  }
}

void attention_reference(const float* q, const float* keys, const float* values, std::int64_t t,
                         std::int64_t head_dim, double scale, double* out, double* magnitude) {
  std::vector<double> p(static_cast<std::size_t>(t));
  double top = -INFINITY, sum = 0;
  for (std::int64_t i = 0; i < t; ++i) {
    double dot = 0;
    for (std::int64_t d = 0; d < head_dim; ++d)
      dot += static_cast<double>(q[d]) * keys[i * head_dim + d];
    p[static_cast<std::size_t>(i)] = dot * scale;
    top = std::max(top, dot * scale);
  }
  for (double& s : p) sum += s = std::exp(s - top);
  for (std::int64_t d = 0; d < head_dim; ++d) {
    out[d] = magnitude[d] = 0;
    for (std::int64_t i = 0; i < t; ++i) {
      const double v = p[static_cast<std::size_t>(i)] / sum * values[i * head_dim + d];
      out[d] += v, magnitude[d] += std::fabs(v);
    }
  }
}

}  // namespace nibble
