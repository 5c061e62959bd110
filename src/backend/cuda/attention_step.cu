// Rotation, cache and attention of a step's rows in one launch (Hopper on), with the bits of
// attention.cu: a cluster of eight blocks a split, key-value head and row. Each block rotates the
// query heads that share the key-value head and scores them on 64 positions; all give all the
// scores; then each sums up an eighth of head_dim over the split. Keys and values are read once.
// Of several splits, the one that ends last puts an eighth together, in their order whoever it is:
// nobody waits.
//
// The row's own key and value are made in each block that needs them and stored by one: what a
// launch stores in the cache, none of its blocks reads there. Rows are of different sequences.
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
  cluster_arrive();
  const int count = past < kSplit ? past : kSplit, blocks = (count + kBlock - 1) / kBlock;
  const int own = past <= kSplit ? past - 1 : -1;  // the row's own position, or not here
  const int old = own >= 0 ? own : count;          // positions in the cache
  const std::int64_t first = vector_index(c, {place.slot, begin}, kv);  // of scales and values
  const Room r = room(shared_memory(), group, hd, a.rotary);

  // Older positions' keys and scales, and weights, come before the wait: nothing under way writes
  // them.
  const int from = block * kBlock, here = old - from < kBlock ? old - from : kBlock;
  const auto* keys = static_cast<const std::int16_t*>(c.keys) + (first + from) * hd;
  const auto* values = static_cast<const std::int16_t*>(c.values) + first * hd;
#pragma unroll 4
  for (int i = tid; i < kBlock * hd / 8; i += kThreads)
    if (i % kBlock < here) copy_async16(r.tile + i * 8, keys + i * 8);
  for (int i = tid; i < old / 4; i += kThreads)
    copy_async16(r.value_scale + 4 * i, c.value_scales + first + 4 * i);
  copy_async_commit();
  if (tid == 0 && here > 0) prefetch(values + from * hd, here * hd * 2);
  float of_key[2], rest = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int p = lane + i * kLanes;
    of_key[i] = p < here ? load_fresh(c.key_scales + first + from + p) : 0.0f;
  }
  const int last = old / 4 * 4 + tid;
  if (last < old) rest = load_fresh(c.value_scales + first + last);
  const float* cos_sin = a.cos_sin + static_cast<std::int64_t>(row) * a.rotary;
#pragma unroll 1
  for (int d = tid; d < hd; d += kThreads) {
    float q = a.q_norm != nullptr ? a.q_norm[d] : 0, k = a.k_norm != nullptr ? a.k_norm[d] : 0,
          t = d < a.rotary ? load_fresh(cos_sin + d) : 0;
    hold(q), hold(k), hold(t);
    r.norms[d] = q, r.norms[hd + d] = k;
    if (d < a.rotary) r.turn[d] = t;
  }
  if (last < old) r.value_scale[last] = rest;
  block_sync();
  await_last();

  const bool scores = from < count;                      // this block has positions
  const bool owner = own >= 0 && own / kBlock == block;  // of the row's own position
  const std::int64_t head = static_cast<std::int64_t>(row) * a.heads + kv * group;
  const std::int64_t kv_at = (static_cast<std::int64_t>(row) * c.kv_heads + kv) * hd;
  const int vectors = own >= 0 ? group + 2 : group;  // key and value after the queries
  const int splits = place.position / kSplit + 1;
  const float* gate = splits == 1 ? of.gate : nullptr;
  for (int i = tid; gate != nullptr && i < group * width; i += kThreads)
    r.gate[i] = gate[(head + i / width) * of.gate_pitch + block * width + i % width];
  const std::int64_t own_at = first + own;
#pragma unroll 1
  for (int v = warp; v < vectors; v += kWarps) {
    float* y = r.heads + v * hd;
    const bool key = v == group, value = v > group;
    if (key ? !owner : !value && !scores) continue;
    load_head(key ? a.k + kv_at : value ? a.v + kv_at : a.q + (head + v) * a.q_pitch, hd, y);
    if (!value) {
      const float* norm = key ? a.k_norm : a.q_norm;
      turn_head(y, norm != nullptr ? r.norms + (key ? hd : 0) : nullptr, a.offset, a.eps, hd,
                r.turn, a.rotary);
      if (!key) continue;
    }
    // In shared memory the key is one of the tile's; the value lies apart.
    std::int16_t* const near = key ? r.tile + own % kBlock * 8 : r.value;
    const int step = key ? kBlock * 8 : 8;
    const auto at = [&](int d) { return d / 8 * step + d % 8; };
    const float scale = store_fixed(y, hd, near, at);
    if (lane == 0) *(key ? r.key_scale : r.value_scale + own) = scale;
    if (!owner) continue;
    warp_sync();
    auto* far = static_cast<std::int16_t*>(key ? c.keys : c.values) +
                (key ? (first - begin) * hd + key_index(c, place.position, 0) : own_at * hd);
#pragma unroll 2
    for (int d = lane; d < hd; d += kLanes) far[at(d)] = near[at(d)];
    if (lane == 0) (key ? c.key_scales : c.value_scales)[own_at] = scale;
  }
  copy_async_wait<0>();
  block_sync();
  cluster_wait();  // all its blocks are there, and may be given scores

  const float none = bits_float(static_cast<int>(0xff800000u));
#pragma unroll 1
  for (int g = 2 * warp; scores && g < group; g += 2 * kWarps) {
    const int pair = g + 1 < group ? 2 : 1;
    float s[2][2] = {};
    score_two(r.tile, r.heads + g * hd, (pair - 1) * hd, hd, s);
    float most[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int p = from + lane + i * kLanes;
      const float scale = of.scale * (p == own ? *r.key_scale : of_key[i]);
#pragma unroll
      for (int h = 0; h < 2; ++h) s[h][i] = p < count ? s[h][i] * scale + 0.0f : none;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) most[h] = max_or(s[h][0], s[h][1]);
#pragma unroll
    for (int n = 16; n > 0; n /= 2)
#pragma unroll
      for (int h = 0; h < 2; ++h) most[h] = max_or(most[h], shuffle_xor(most[h], n));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (h >= pair) break;
      float* at = r.score + (g + h) * kScores + from;
      at[lane] = s[h][0], at[lane + kLanes] = s[h][1];
      if (lane < kCluster) store_remote(r.most + (g + h) * kCluster + block, lane, most[h]);
    }
    warp_sync();
    // Half a warp gives a head's 64 scores to one of the others.
    const int other = lane / 16, piece = lane % 16 * 4;
#pragma unroll 1
    for (int h = 0; h < pair; ++h) {
      float* at = r.score + (g + h) * kScores + from + piece;
      const float4 four = *reinterpret_cast<const float4*>(at);
#pragma unroll
      for (int to = 0; to < kCluster; to += 2)
        if (to + other != block) store_remote(at, to + other, four);
    }
  }
  cluster_arrive();
  block_sync();  // nobody reads keys any more
  const int pieces = width / 8;
#pragma unroll 4
  for (int i = tid; i < old * pieces; i += kThreads) {
    const int p = i / pieces, piece = i - p * pieces;
    copy_async16(r.tile + p * width + piece * 8, values + p * hd + block * width + piece * 8);
  }
  copy_async_commit();
  if (own >= 0)
    for (int d = tid; d < width; d += kThreads)
      r.tile[own * width + d] = r.value[block * width + d];
  cluster_wait();
#pragma unroll 1
  for (int g = warp; g < group; g += kWarps) soften_head(r, g, blocks);
  copy_async_wait<0>();
  block_sync();
#pragma unroll 1
  for (int i = tid; i < width / 2 * group; i += kThreads) {
    const int g = i / (width / 2), d = i % (width / 2) * 2;
    const float2 o = sum_up(r, g, d, width, count);
    if (splits > 1) {
      float* part = part_of(of, head + g, split, block, width);
      if (d == 0) part[0] = r.end[2 * g + 1], part[1] = r.end[2 * g];
      part[2 + d] = o.x, part[3 + d] = o.y;
      continue;
    }
    const float* gates = gate != nullptr ? r.gate + g * width + d : nullptr;
#pragma unroll
    for (int n = 0; n < 2; ++n)
      finish_whole(of, head + g, block * width + d + n, n == 0 ? o.x : o.y, r.end[2 * g],
                   gates != nullptr ? gates + n : nullptr);
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
         room_bytes(a) <= q.shared_limit;
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
