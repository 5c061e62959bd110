// Rotation, cache and attention of a step's rows in one launch (Hopper on), with the bits of
// attention.cu: a cluster of eight blocks a split, key-value head and row. Each block rotates the
// query heads that share the key-value head and has 64 positions for all of them, softmax and
// values included; then each puts together an eighth of head_dim over the split. Keys and values
// are read once. Of several splits, the one that ends last puts an eighth together, in their order
// whoever it is: nobody waits.
//
// The row's own key and value are made by the block of their position, which takes them from its
// shared memory and stores them: what a launch stores in the cache, none of its blocks reads there.
// Rows are of different sequences.
#include "backend/cuda/attention_step.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

using namespace step;

// Dim: head_dim, or 0: any.
template <int Dim>
__global__ void __launch_bounds__(kThreads, 3)
    attend_step(const __grid_constant__ AttendStepArgs args) {
  start_next();
  const RopeArgs& a = args.rope;
  const AttendArgs& of = args.attend;
  const KvLayer& c = a.cache;
  const int hd = Dim > 0 ? Dim : c.head_dim, group = a.heads / c.kv_heads, width = hd / kCluster,
            block = static_cast<int>(blockIdx.x) % kCluster,
            kv = static_cast<int>(blockIdx.x) / kCluster, split = static_cast<int>(blockIdx.y),
            row = static_cast<int>(blockIdx.z), tid = static_cast<int>(threadIdx.x),
            lane = tid % kLanes, warp = tid / kLanes;
  // They come by a copy, which no launch overlaps.
  const Place place{load_fresh(&a.rows[row].slot), load_fresh(&a.rows[row].position)};
  const int begin = split * kSplit, past = place.position + 1 - begin;  // positions from begin on
  if (past <= 0) return;                                                // the whole cluster
  const int from = block * kBlock;
  const auto upto = [](int n, int most) { return n < 0 ? 0 : n < most ? n : most; };
  const int all = upto(past, kSplit), blocks = (all + kBlock - 1) / kBlock;
  const int count = upto(all - from, kBlock);  // positions of this block; of the split: all
  const bool owner = past > from && past <= from + kBlock;  // of the row's own position, its last
  const int old = owner ? count - 1 : count;                // positions in the cache
  const std::int64_t first = vector_index(c, {place.slot, begin}, kv) + from;
  const Room r = room(shared_memory(), group, hd, a.rotary);

  // Older positions' keys, values and scales, and weights, come before the wait: nothing under way
  // writes them.
  const auto* keys = static_cast<const std::int16_t*>(c.keys) + first * hd;
  const auto* values = static_cast<const std::int16_t*>(c.values) + first * hd;
#pragma unroll 4
  for (int i = tid; i < kBlock * hd / 8; i += kThreads)
    if (i % kBlock < old) copy_async16(r.keys + i * 8, keys + i * 8);
  copy_async_commit();
#pragma unroll 4
  for (int i = tid; i < old * hd / 8; i += kThreads) copy_async16(r.values + i * 8, values + i * 8);
  copy_async_commit();
  float of_key[2], of_value[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int p = lane + i * kLanes;
    of_key[i] = p < old ? load_fresh(c.key_scales + first + p) : 0.0f;
    of_value[i] = p < old ? load_fresh(c.value_scales + first + p) : 0.0f;
  }
  const float* cos_sin = a.cos_sin + static_cast<std::int64_t>(row) * a.rotary;
#pragma unroll 1
  for (int d = tid; d < hd; d += kThreads) {
    float q = a.q_norm != nullptr ? a.q_norm[d] : 0, k = a.k_norm != nullptr ? a.k_norm[d] : 0,
          t = d < a.rotary ? load_fresh(cos_sin + d) : 0;
    hold(q), hold(k), hold(t);
    r.norms[d] = q, r.norms[hd + d] = k;
    if (d < a.rotary) r.turn[d] = t;
  }
  block_sync();
  await_last();

  const std::int64_t head = static_cast<std::int64_t>(row) * a.heads + kv * group;
  const std::int64_t kv_at = (static_cast<std::int64_t>(row) * c.kv_heads + kv) * hd;
  const int splits = place.position / kSplit + 1;
  const auto gate_of = [&](int i) {  // of the block's eighth of the heads, if it is finished here
    const bool has = of.gate != nullptr && splits == 1 && i < group * width;
    return has ? of.gate[(head + i / width) * of.gate_pitch + block * width + i % width] : 0.0f;
  };
  float gate = gate_of(tid);
  hold(gate);                                                      // it comes meanwhile
  const int vectors = count == 0 ? 0 : owner ? group + 2 : group;  // key, value after the queries
#pragma unroll 1
  for (int v = warp; v < vectors; v += kWarps) {
    float* y = r.heads + v * hd;
    const bool key = v == group, value = v > group;
    load_head(key ? a.k + kv_at : value ? a.v + kv_at : a.q + (head + v) * a.q_pitch, hd, y);
    if (!value) {
      const float* norm = key ? a.k_norm : a.q_norm;
      turn_head(y, norm != nullptr ? r.norms + (key ? hd : 0) : nullptr, a.offset, a.eps, hd,
                r.turn, a.rotary);
      if (!key) continue;
    }
    std::int16_t* const near = key ? r.keys + old * 8 : r.values + old * hd;
    const int step = key ? kBlock * 8 : 8;
    const auto at = [&](int d) { return d / 8 * step + d % 8; };
    const float scale = store_fixed(y, hd, near, at);
    warp_sync();
    auto* far =
        static_cast<std::int16_t*>(key ? c.keys : c.values) + first * hd + old * (key ? 8 : hd);
#pragma unroll 2
    for (int d = lane; d < hd; d += kLanes) far[at(d)] = near[at(d)];
    if (lane == 0) {
      r.scales[v - group] = scale;
      (key ? c.key_scales : c.value_scales)[first + old] = scale;
    }
  }
  copy_async_wait<1>();
  block_sync();

  const float none = bits_float(static_cast<int>(0xff800000u));
#pragma unroll 1
  for (int g = 2 * warp; count > 0 && g < group; g += 2 * kWarps) {
    const int pair = g + 1 < group ? 2 : 1;
    float s[2][2] = {};
    score_two(r.keys, r.heads + g * hd, (pair - 1) * hd, hd, s);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int p = lane + i * kLanes;
      const bool own = owner && p == old;
      const float scale = of.scale * (own ? r.scales[0] : of_key[i]);
      if (own) of_value[i] = r.scales[1];
#pragma unroll
      for (int h = 0; h < 2; ++h) s[h][i] = p < count ? s[h][i] * scale + 0.0f : none;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (h >= pair) break;
      const Softened soft = soften(s[h]);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        r.weight[(g + h) * kScores + lane + i * kLanes] = soft.e[i] * of_value[i];
      if (lane == 0) r.own[2 * (g + h)] = soft.top, r.own[2 * (g + h) + 1] = soft.sum;
    }
  }
  copy_async_wait<0>();
  cluster_arrive();  // keys and queries are read
  block_sync();

  const int quads = hd / 4, pairs = (group + 1) / 2;
#pragma unroll 1
  for (int at = 0; at < quads * pairs; at += kThreads) {
    const int i = at + tid, g = i / quads * 2, d = i % quads * 4, to = d / width;
    const bool has = count > 0 && i < quads * pairs, two = g + 1 < group;
    float o[2][4] = {};
    if (has) sum_two(r.values + d, r.weight + g * kScores, two ? kScores : 0, hd, count, o);
    if (at == 0) {  // the cluster's blocks may be given sums
      warp_sync();
      cluster_wait();
      for (int j = tid; count > 0 && j < kCluster * group * 2; j += kThreads)
        store_remote(r.ends + block * group * 2 + j / kCluster, j % kCluster, r.own[j / kCluster]);
    }
    float* part = r.parts + (block * group + g) * width + d % width;
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (has && (h == 0 || two))
        store_remote(part + h * width, to, float4{o[h][0], o[h][1], o[h][2], o[h][3]});
  }
  cluster_arrive();
  cluster_wait();

#pragma unroll 1
  for (int g = warp; g < group; g += kWarps) {
    const float* its = r.ends + (lane * group + g) * 2;
    const Shares of_split = share_out(lane < blocks ? its[0] : none, lane < blocks ? its[1] : 0);
    if (lane < kCluster) r.shares[g * kCluster + lane] = of_split.share;
    if (lane == 0) r.end[2 * g] = of_split.top, r.end[2 * g + 1] = of_split.sum;
  }
  block_sync();
#pragma unroll 1
  for (int i = tid; i < width * group; i += kThreads) {
    const int g = i / width, d = i % width;
    float o = 0;
#pragma unroll
    for (int b = 0; b < kCluster; ++b)
      if (b < blocks) o = fmaf(r.shares[g * kCluster + b], r.parts[b * group * width + i], o);
    if (splits > 1) {
      float* part = part_of(of, head + g, split, block, width);
      if (d == 0) part[0] = r.end[2 * g], part[1] = r.end[2 * g + 1];
      part[2 + d] = o;
      continue;
    }
    const float its = i == tid ? gate : gate_of(i);
    finish_whole(of, head + g, block * width + d, o, r.end[2 * g + 1],
                 of.gate != nullptr ? &its : nullptr);
  }
  if (splits == 1) return;
  int* arrived = c.arrived + (row * c.kv_heads + kv) * kCluster + block;
  if (is_last_block(arrived, splits, r.flag))
    combine_eighth(r, of, head, group, block, width, splits);
}

std::size_t room_bytes(const RopeArgs& a) {
  char at;  // any place
  return room(&at, a.heads / a.cache.kv_heads, a.cache.head_dim, a.rotary).bytes;
}

}  // namespace

bool can_attend_step(const Queue& q, const RopeArgs& a) {
  return q.clusters && a.m <= kMaxRows && a.cache.fixed && a.cache.head_dim % 64 == 0 &&
         fits(a.heads / a.cache.kv_heads, a.cache.head_dim) && room_bytes(a) <= q.shared_limit;
}

void launch_attend_step(const Queue& q, const AttendStepArgs& a) {
  const KvLayer& c = a.rope.cache;
  // The last splits, which are short, come last.
  const dim3 grid{static_cast<unsigned>(kCluster * c.kv_heads),
                  static_cast<unsigned>(a.attend.splits), static_cast<unsigned>(a.rope.m)};
  launch_clusters(q, "attend_step", c.head_dim == 256 ? attend_step<256> : attend_step<0>, kCluster,
                  grid, kThreads, room_bytes(a.rope), a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
