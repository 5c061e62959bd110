// rope_cache and attention: from the q, k, v projections to the attention output.
//
// rope_cache, one row per position:
//   q_j, k_j = rmsnorm over head_dim (when norm weights are given, before RoPE), times the weight
//     or, with unit_offset, 1 + weight
//   RoPE on the first `rotary` dims of each head, NeoX pairing (d, d + rotary/2):
//     y_d = x_d cos - x_(d+r/2) sin,  y_(d+r/2) = x_(d+r/2) cos + x_d sin
//   q_out = rotated q; rotated k and raw v are stored in the cache at (slot, position).
// attention, per row and query head j, kv head floor(j / (heads / kv_heads)):
//   out_j = softmax(scale * q_j . k_t, t = 0..position) v_t      (* sigmoid(gate_j), when given)
// rope_attention: the first, then the second on its q_out, rows, cache and layer; q_out need not be
// written. Same bits.
// Heads of q and gate may lie further apart than head_dim: a projection that interleaves them,
// [query | gate] a head, is read where it lies.
// Each block of 64 positions has its own maximum, sum and weighted values; a split of 512 combines
// its blocks, and the row its splits, in ascending order. Both are anchored at absolute positions:
// bits depend on the row's own sequence only. Aliasing: q_out apart from q, k, v; out apart from q
// and gate. The cache is advanced in place (the named exception of docs/design.md): each element is
// written by exactly one thread of one launch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ops/activations.h"

namespace nibble {

// I16: 16-bit fixed point, one fp32 scale a head's vector (largest magnitude / 32512). fp16 takes
// as many bytes and is ten times as coarse: it alone moved the oracles' logits by 0.008 (median
// RMS).
enum class KvType : std::uint8_t { I16, F32 };

struct KvShape {
  std::int64_t layers = 0, slots = 0, kv_heads = 0, head_dim = 0;
  std::int64_t context = 0;  // positions a slot holds
  KvType type = KvType::I16;
  std::int64_t padded_context() const { return (context + 63) / 64 * 64; }
  std::uint64_t bytes() const {
    return static_cast<std::uint64_t>(layers * slots * kv_heads * padded_context()) * 2 *
           static_cast<std::uint64_t>(type == KvType::I16 ? head_dim * 2 + 4 : head_dim * 4);
  }
};

// Keys and values of all layers and slots, in the backend's own order.
class KvCache {
 public:
  virtual ~KvCache() = default;
  const KvShape& shape() const { return shape_; }
  // One head's key and value at a position as fp32 [head_dim] each (host memory; for tests).
  virtual void read(std::int64_t layer, std::int64_t slot, std::int64_t head, std::int64_t position,
                    float* k, float* v) const = 0;
  // The first n positions of slot `from`, all layers -> slot `to`.
  virtual void copy(std::int64_t from, std::int64_t to, std::int64_t n) = 0;

 protected:
  explicit KvCache(const KvShape& s) : shape_(s) {}
  KvShape shape_;
};

struct RowPlace {
  std::int32_t slot = 0;
  std::int32_t position = 0;
};

struct RopeCacheArgs {
  const float* q = nullptr;       // [M, heads * q_pitch]
  std::int64_t q_pitch = 0;       // floats from a head to the next, >= head_dim; 0: head_dim
  const float* k = nullptr;       // [M, kv_heads * head_dim]
  const float* v = nullptr;       // [M, kv_heads * head_dim]
  const float* q_norm = nullptr;  // [head_dim] or null
  const float* k_norm = nullptr;  // [head_dim] or null
  bool unit_offset = false;
  float eps = 1e-6f;
  const float* cos_sin = nullptr;  // [M, rotary / 2, 2] on the host
  std::int64_t m = 0, heads = 0, rotary = 0;
  const RowPlace* rows = nullptr;  // [M] on the host, no two alike
  KvCache* cache = nullptr;
  std::int64_t layer = 0;
  float* q_out = nullptr;  // [M, heads * head_dim]
};

struct AttentionArgs {
  const float* q = nullptr;     // [M, heads * head_dim], rotated
  const float* gate = nullptr;  // [M, heads * gate_pitch], of each head the first head_dim; or null
  std::int64_t gate_pitch = 0;
  std::int64_t m = 0, heads = 0;
  float scale = 1;
  const RowPlace* rows = nullptr;  // [M]; positions 0..position of the slot are in the cache
  const KvCache* cache = nullptr;
  std::int64_t layer = 0;
  float* out = nullptr;                          // [M, heads * head_dim]
  Activations activations = Activations::Int16;  // Half: fp16 products; else as above
};

inline constexpr int kAttentionBlock = 64;   // positions
inline constexpr int kAttentionSplit = 512;  // positions

void check(const RopeCacheArgs& a);
void check(const AttentionArgs& a);
// Of rope_attention(): the second is also of the rows that the first rotates.
void check(const RopeCacheArgs& rope, const AttentionArgs& a);

// No two rows are of one slot.
bool own_slots(std::span<const RowPlace> rows);

// One head of one row, in double: x [head_dim] -> y [head_dim]. norm may be null.
void rope_reference(const float* x, std::int64_t head_dim, const float* norm, bool unit_offset,
                    double eps, const float* cos_sin, std::int64_t rotary, double* y);
// One query head: keys and values [t, head_dim]. magnitude = sum p |v|.
void attention_reference(const float* q, const float* keys, const float* values, std::int64_t t,
                         std::int64_t head_dim, double scale, double* out, double* magnitude);

}  // namespace nibble
