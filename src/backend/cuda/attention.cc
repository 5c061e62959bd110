// rope_cache, attention and the KV cache.
#include <algorithm>
#include <bit>

#include "backend/cuda/cuda_state.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

std::size_t elements(const KvShape& s) {
  return static_cast<std::size_t>(s.layers * s.slots * s.kv_heads * s.padded_context());
}

}  // namespace

CudaKvCache::CudaKvCache(const KvShape& s, const Queue& q, Arena& arena) : KvCache(s), q_(q) {
  const std::size_t vectors = elements(s),
                    bytes = vectors * static_cast<std::size_t>(s.head_dim) * element();
  keys_ = {bytes, "the KV cache", &arena}, values_ = {bytes, "the KV cache", &arena};
  clear(q_, keys_.get(), bytes), clear(q_, values_.get(), bytes);
  if (s.type != KvType::I16) return;
  arrived_ = {kMaxRows * static_cast<std::size_t>(s.kv_heads) * kAttendCluster * sizeof(int),
              "counts of blocks", &arena};
  clear(q_, arrived_.get(), arrived_.size());
  for (Block* b : {&key_scales_, &value_scales_}) {
    *b = {vectors * sizeof(float), "the KV cache", &arena};
    clear(q_, b->get(), b->size());
  }
}

std::size_t CudaKvCache::vector_at(std::int64_t layer, std::int64_t slot, std::int64_t head) const {
  return static_cast<std::size_t>(((layer * shape_.slots + slot) * shape_.kv_heads + head) *
                                  shape_.padded_context());
}

KvLayer CudaKvCache::layer(std::int64_t layer) const {
  const std::size_t at = vector_at(layer, 0, 0),
                    bytes = at * static_cast<std::size_t>(shape_.head_dim) * element();
  KvLayer l{};
  l.keys = keys_.as<char>() + bytes, l.values = values_.as<char>() + bytes;
  l.fixed = shape_.type == KvType::I16;
  if (l.fixed)
    l.key_scales = key_scales_.as<float>() + at, l.value_scales = value_scales_.as<float>() + at;
  l.kv_heads = static_cast<int>(shape_.kv_heads), l.head_dim = static_cast<int>(shape_.head_dim);
  l.positions = static_cast<int>(shape_.padded_context()), l.arrived = arrived_.as<int>();
  return l;
}

void CudaKvCache::copy(std::int64_t from, std::int64_t to, std::int64_t n) {
  const auto vectors = static_cast<std::size_t>((n + 63) / 64 * 64);  // keys lie 64 together
  for (std::int64_t layer = 0; layer < shape_.layers; ++layer)
    for (std::int64_t head = 0; head < shape_.kv_heads; ++head) {
      const auto move = [&](const Block& b, std::size_t width) {
        copy_within(q_, b.as<char>() + vector_at(layer, to, head) * width,
                    b.as<char>() + vector_at(layer, from, head) * width, vectors * width);
      };
      const std::size_t width = static_cast<std::size_t>(shape_.head_dim) * element();
      move(keys_, width), move(values_, width);
      if (shape_.type == KvType::I16) move(key_scales_, 4), move(value_scales_, 4);
    }
}

void CudaKvCache::read(std::int64_t layer, std::int64_t slot, std::int64_t head,
                       std::int64_t position, float* k, float* v) const {
  const auto hd = static_cast<std::size_t>(shape_.head_dim), size = element();
  const std::size_t at = vector_at(layer, slot, head) + static_cast<std::size_t>(position);
  const auto p = static_cast<std::size_t>(position), block = at - p % 64;
  const auto value = [&](const Block& b, std::size_t index) {
    std::int16_t i = 0;
    float f = 0;
    const char* from = b.as<char>() + index * size;
    if (size == 4) {
      copy_out(q_, &f, from, 4);
      return f;
    }
    copy_out(q_, &i, from, 2);
    return static_cast<float>(i);
  };
  float ks = 1, vs = 1;
  if (shape_.type == KvType::I16) {
    copy_out(q_, &ks, key_scales_.as<float>() + at, 4);
    copy_out(q_, &vs, value_scales_.as<float>() + at, 4);
  }
  for (std::size_t d = 0; d < hd; ++d) {
    k[d] = value(keys_, block * hd + (d / 8 * 64 + p % 64) * 8 + d % 8) * ks;
    v[d] = value(values_, at * hd + d) * vs;
  }
}

std::unique_ptr<KvCache> CudaBackend::make_kv_cache(const KvShape& shape) {
  return std::make_unique<CudaKvCache>(shape, q_, arena_);
}

RopeArgs CudaBackend::rope_args(const RopeCacheArgs& a) {
  const auto& cache = static_cast<const CudaKvCache&>(*a.cache);
  RopeArgs r{};
  r.q = a.q, r.k = a.k, r.v = a.v, r.q_norm = a.q_norm, r.k_norm = a.k_norm;
  r.offset = a.unit_offset ? 1.0f : 0.0f, r.eps = a.eps;
  r.cos_sin = on_device("cosines and sines", a.cos_sin, a.m * a.rotary);
  r.m = static_cast<int>(a.m), r.heads = static_cast<int>(a.heads);
  r.q_pitch = static_cast<int>(a.q_pitch > 0 ? a.q_pitch : cache.shape().head_dim);
  r.rotary = static_cast<int>(a.rotary), r.rows = places(a.rows, a.m);
  r.cache = cache.layer(a.layer), r.q_out = a.q_out;
  return r;
}

namespace {

constexpr std::int64_t kStepRows = 4;  // rope_attention() takes so many in one launch always

// Without rows and what depends on them.
AttendArgs common_args(const AttentionArgs& a, const KvLayer& cache) {
  AttendArgs r{};
  r.q = a.q, r.gate = a.gate, r.gate_pitch = static_cast<int>(a.gate_pitch);
  r.m = static_cast<int>(a.m), r.heads = static_cast<int>(a.heads), r.scale = a.scale;
  r.cache = cache, r.out = a.out;
  return r;
}

}  // namespace

AttendArgs CudaBackend::attend_args(const AttentionArgs& a, const KvLayer& cache, int tops) {
  AttendArgs r = common_args(a, cache);
  r.rows = places(a.rows, a.m);
  std::int64_t longest = 0;
  for (std::int64_t i = 0; i < a.m; ++i)
    longest = std::max<std::int64_t>(longest, a.rows[i].position + 1);
  r.splits = static_cast<int>((longest + kAttentionSplit - 1) / kAttentionSplit);
  r.in_runs = a.m > kAttendRows;
  for (std::int64_t i = 1; i < a.m; ++i)
    r.in_runs = r.in_runs && (i % kAttendRows == 0 || a.rows[i].slot == a.rows[i - 1].slot);
  r.parts = scratch<float>("attention splits",
                           static_cast<std::size_t>(a.m * a.heads * r.splits *
                                                    (cache.head_dim + std::int64_t{2} * tops)));
  return r;
}

void CudaBackend::rope_cache(const RopeCacheArgs& a) {
  check(a);
  launch_rope_cache(q_, rope_args(a));
}

void CudaBackend::attention(const AttentionArgs& a) {
  check(a);
  const KvLayer cache = static_cast<const CudaKvCache&>(*a.cache).layer(a.layer);
  if (a.activations == Activations::Half && can_attend_half(q_, cache))
    return attend_half(common_args(a, cache), a.rows);
  launch_attention(q_, attend_args(a, cache));
}

void CudaBackend::rope_attention(const RopeCacheArgs& rope, const AttentionArgs& a) {
  check(rope, a);
  const RopeArgs r = rope_args(rope);
  const auto is_long = [](const RowPlace& p) { return p.position >= kAttentionSplit; };
  // Measured: many rows with short pasts fill the device without clusters.
  const bool pays = a.m <= kStepRows || std::any_of(a.rows, a.rows + a.m, is_long);
  if (a.activations == Activations::Half || !pays ||
      !own_slots({a.rows, static_cast<std::size_t>(a.m)}) || !can_attend_step(q_, r))
    return Backend::rope_attention(rope, a);
  launch_attend_step(q_, {r, attend_args(a, r.cache, kAttendCluster)});
}

// In launches of up to 64 groups; a sequence's tiles are made in each that has rows of it.
void CudaBackend::attend_half(const AttendArgs& a, const RowPlace* rows) {
  require(recording_.empty(), "cuda: attention of prompts cannot be recorded");  // it knows places
  const auto block = [](int position) { return position / static_cast<int>(kAttentionBlock); };
  struct Run {
    int slot;
    HalfGroup group;
  };
  std::vector<Run> runs;
  for (int i = 0; i < a.m; ++i) {
    const RowPlace& p = rows[i];
    if (i > 0 && p.slot == rows[i - 1].slot && p.position == rows[i - 1].position + 1 &&
        block(p.position) == block(rows[i - 1].position))
      ++runs.back().group.rows;
    else
      runs.push_back({p.slot, {i, 1, p.position, 0}});
  }
  std::stable_sort(runs.begin(), runs.end(), [&](const Run& x, const Run& y) {
    return block(x.group.position) > block(y.group.position);
  });
  for (std::size_t first = 0; first < runs.size(); first += kHalfGroups) {
    HalfAttendArgs h{};
    h.of = a;
    int tiles = 0;
    for (std::size_t i = first; i < runs.size() && h.groups < kHalfGroups; ++i) {
      const auto begin = h.sequence, end = begin + h.sequences,
                 known = std::find_if(begin, end,
                                      [&](const HalfSequence&s) { return s.slot == runs[i].slot; });
      if (known == end) {  // its longest group comes first
        const int blocks = block(runs[i].group.position) + 1;
        h.sequence[h.sequences++] = {runs[i].slot, blocks, tiles};
        tiles += blocks * a.cache.kv_heads;
      }
      HalfGroup& g = h.group[h.groups++];
      g = runs[i].group, g.sequence = static_cast<int>(known - begin);
    }
    // Doubled when it grows: a growing scratch drops the graphs.
    h.tiles = scratch<std::byte>(
        "keys and values in fp16",
        std::bit_ceil(static_cast<std::size_t>(tiles)) * half_tile_bytes(a.cache.head_dim));
    launch_attention_half(q_, h);
  }
}

}  // namespace nibble::NIBBLE_CUDA_NS
