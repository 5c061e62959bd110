// Rotation, cache and attention of a step's rows in one launch (Hopper on), with the bits of
// attention.cu: a cluster of eight blocks a split, key-value head and row. Each block rotates the
// query heads that share the key-value head and scores them on 64 positions; all give all the
// scores; then each sums up an eighth of head_dim over the split. Keys and values are read once.
//
// The row's own key and value are made in each block that needs them and stored by one: what a
// launch stores in the cache, none of its blocks reads there. Rows are of different sequences.
#include "backend/cuda/split.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kCluster = kSplit / kBlock, kThreads = 256, kWarps = kThreads / kLanes;
static_assert(2 * kLanes == kBlock);

// In shared memory, all of it a multiple of 16 bytes.
struct Room {
  std::int16_t* tile;  // [head_dim / 8][64][8] keys, then [512][head_dim / 8] values
  float* score;        // [group][512], later weights
  float* heads;        // [group + 2][head_dim]: queries, the new key, the new value
  float* norms;        // [2][head_dim], of queries, of keys
  float* turn;         // [rotary]
  float* value_scale;  // [512]
  float* most;         // [group][8][2], by half a block
  float* shrink;       // [group][8], by block
  float* end;          // [group][2]: sum, top
  float* gate;         // [group][head_dim / 8]
  std::int16_t* value; // [head_dim], the new one
  float* key_scale;    // of the new one
  std::size_t bytes;
};
__device__ __host__ inline Room room(char* at, int group, int hd, int rotary) {
  Room r{};
  const auto take = [&](auto*& p, int n) {
    p = reinterpret_cast<std::remove_reference_t<decltype(p)>>(at + r.bytes);
    r.bytes += (static_cast<std::size_t>(n) * sizeof *p + 15) / 16 * 16;
  };
  take(r.tile, kBlock * hd), take(r.score, group * kSplit), take(r.heads, (group + 2) * hd);
  take(r.norms, 2 * hd), take(r.turn, rotary), take(r.value_scale, kSplit);
  take(r.most, 2 * group * kCluster), take(r.shrink, group * kCluster), take(r.end, group * 2);
  take(r.gate, group * hd / kCluster), take(r.value, hd), take(r.key_scale, 1);
  return r;
}

// A word's two 16-bit integers. 2^23 + 2^15 + x has x in its low bits.
__device__ __forceinline__ float2 two_floats(std::uint32_t word) {
  const std::uint32_t w = word ^ 0x80008000u, high = 0x4b000000u;
  const float bias = 8421376.0f;
  return make_float2(bits_float(static_cast<int>((w & 0xffffu) | high)) - bias,
                     bits_float(static_cast<int>((w >> 16) | high)) - bias);
}

// Scores of two heads, q and q + pitch, on a position of the tile.
__device__ __forceinline__ float2 score_two(const std::int16_t* tile, int position, const float* q,
                                            int pitch, int hd) {
  const uint4* key = reinterpret_cast<const uint4*>(tile) + position;
  float2 s{0, 0};
#pragma unroll 4
  for (int d = 0; d < hd; d += 8) {
    const uint4 v = key[d / 8 * kBlock];
    const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 k[2] = {two_floats(words[2 * i]), two_floats(words[2 * i + 1])};
      const float4 a = *reinterpret_cast<const float4*>(q + d + 4 * i),
                   b = *reinterpret_cast<const float4*>(q + pitch + d + 4 * i);
      s.x = fmaf(a.x, k[0].x, s.x), s.y = fmaf(b.x, k[0].x, s.y);
      s.x = fmaf(a.y, k[0].y, s.x), s.y = fmaf(b.y, k[0].y, s.y);
      s.x = fmaf(a.z, k[1].x, s.x), s.y = fmaf(b.z, k[1].x, s.y);
      s.x = fmaf(a.w, k[1].y, s.x), s.y = fmaf(b.w, k[1].y, s.y);
    }
  }
  return s;
}

// attend()'s softmax of a head over the blocks of a split. Whole warp.
__device__ __forceinline__ void soften_head(const Room& r, int g, int blocks) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const float none = bits_float(static_cast<int>(0xff800000u));
  float* score = r.score + g * kSplit;
  float now = none, sum = 0, e[kCluster][2], less[kCluster];
#pragma unroll
  for (int b = 0; b < kCluster; ++b) {
    if (b >= blocks) break;
    const float* halves = r.most + (g * kCluster + b) * 2;
    const float most = max_or(halves[0], halves[1]), next = most > now ? most : now;
    less[b] = now == none ? 0.0f : exp_cut(now - next);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int p = b * kBlock + i * kLanes + lane;
      e[b][i] = exp_cut(score[p] - next);
      score[p] = e[b][i] * r.value_scale[p];
    }
    if (lane == 0) r.shrink[g * kCluster + b] = less[b];
    now = next;
  }
  // Lane l adds positions l, l + 16, ... of a block; lanes 16.. do the same.
#pragma unroll
  for (int b = 0; b < kCluster; ++b) {
    if (b >= blocks) break;
    sum = sum * less[b];
#pragma unroll
    for (int i = 0; i < 4; ++i) sum = sum + shuffle(e[b][i / 2], i % 2 * 16 + lane % 16);
  }
  sum = add_sixteen(sum);
  if (lane == 0) r.end[2 * g] = sum, r.end[2 * g + 1] = now;
}

// Dims d and d + 1 of the block's eighth, of a head, over `count` positions.
__device__ __forceinline__ float2 sum_up(const Room& r, int g, int d, int width, int count) {
  float2 o{0, 0};
  const auto add = [&](float w, std::uint32_t word) {
    const float2 v = two_floats(word);
    o.x = fmaf(w, v.x, o.x), o.y = fmaf(w, v.y, o.y);
  };
  const std::uint32_t* v = reinterpret_cast<const std::uint32_t*>(r.tile + d);
  const int pitch = width / 2;
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kBlock) {
    const float less = r.shrink[g * kCluster + begin / kBlock];
    o.x = o.x * less, o.y = o.y * less;
    const float* w = r.score + g * kSplit + begin;
    const int n = count - begin < kBlock ? count - begin : kBlock;
    int p = 0;
#pragma unroll 4
    for (; p + 4 <= n; p += 4) {
      const float4 four = *reinterpret_cast<const float4*>(w + p);
      const std::uint32_t* at = v + (begin + p) * pitch;
      add(four.x, at[0]), add(four.y, at[pitch]);
      add(four.z, at[2 * pitch]), add(four.w, at[3 * pitch]);
    }
#pragma unroll 1
    for (; p < n; ++p) add(w[p], v[(begin + p) * pitch]);
  }
  return o;
}

__global__ void __launch_bounds__(kThreads, 3)
    attend_step(const __grid_constant__ AttendStepArgs args) {
  start_next();
  const RopeArgs& a = args.rope;
  const AttendArgs& of = args.attend;
  const KvLayer& c = a.cache;
  const int hd = c.head_dim, group = a.heads / c.kv_heads, width = hd / kCluster,
            block = static_cast<int>(blockIdx.x) % kCluster,
            split = static_cast<int>(blockIdx.x) / kCluster, kv = static_cast<int>(blockIdx.y),
            row = static_cast<int>(blockIdx.z), tid = static_cast<int>(threadIdx.x),
            lane = tid % kLanes, warp = tid / kLanes;
  // They come by a copy, which no launch overlaps.
  const Place place{load_fresh(&a.rows[row].slot), load_fresh(&a.rows[row].position)};
  const int begin = split * kSplit, past = place.position + 1 - begin;  // positions from begin on
  if (past <= 0) return;  // the whole cluster
  cluster_arrive();
  const int count = past < kSplit ? past : kSplit, blocks = (count + kBlock - 1) / kBlock,
            own = past <= kSplit ? past - 1 : -1,  // the row's own position, or not here
            old = own >= 0 ? own : count;          // positions in the cache
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
  copy_async_commit();
  if (tid == 0 && here > 0) prefetch(values + from * hd, here * hd * 2);
  for (int i = tid; i < old; i += kThreads)
    r.value_scale[i] = load_fresh(c.value_scales + first + i);
  // In the scores a warp takes half of the block's positions and every fourth pair of heads.
  const int half = warp / 4, in_block = half * kLanes + lane;
  const float of_key = in_block < here ? load_fresh(c.key_scales + first + from + in_block) : 0.0f;
  for (int d = tid; d < hd; d += kThreads) {
    if (a.q_norm != nullptr) r.norms[d] = a.q_norm[d];
    if (a.k_norm != nullptr) r.norms[hd + d] = a.k_norm[d];
  }
  const float* cos_sin = a.cos_sin + static_cast<std::int64_t>(row) * a.rotary;
  for (int d = tid; d < a.rotary; d += kThreads) r.turn[d] = load_fresh(cos_sin + d);
  block_sync();  // weights, cosines and sines are there
  await_last();

  const bool scores = from < count;                       // this block has positions
  const bool owner = own >= 0 && own / kBlock == block;  // of the row's own position
  const std::int64_t head = static_cast<std::int64_t>(row) * a.heads + kv * group;
  const std::int64_t kv_at = (static_cast<std::int64_t>(row) * c.kv_heads + kv) * hd;
  const float* gate = place.position < kSplit ? of.gate : nullptr;
  for (int i = tid; gate != nullptr && i < group * width; i += kThreads)
    r.gate[i] = gate[(head + i / width) * of.gate_pitch + block * width + i % width];
  const std::int64_t own_at = first + own;
#pragma unroll 1
  for (int v = warp; v < group + 2; v += kWarps) {
    float* y = r.heads + v * hd;
    if (v < group ? !scores : own < 0 || (v == group && !owner)) continue;
    load_head(v < group    ? a.q + (head + v) * a.q_pitch
              : v == group ? a.k + kv_at
                           : a.v + kv_at,
              hd, y);
    if (v < group) {
      turn_head(y, a.q_norm != nullptr ? r.norms : nullptr, a.offset, a.eps, hd, r.turn, a.rotary);
    } else if (v == group) {
      turn_head(y, a.k_norm != nullptr ? r.norms + hd : nullptr, a.offset, a.eps, hd, r.turn,
                a.rotary);
      auto* kept = static_cast<std::int16_t*>(c.keys) + (first - begin) * hd;
      const auto at = [&](int d) { return (d / 8 * kBlock + own % kBlock) * 8 + d % 8; };
      const float scale = store_fixed(y, hd, r.tile, at);
      warp_sync();
#pragma unroll 2
      for (int d = lane; d < hd; d += kLanes)
        kept[key_index(c, place.position, d)] = r.tile[at(d)];
      if (lane == 0) c.key_scales[own_at] = *r.key_scale = scale;
    } else {
      const float scale = store_fixed(y, hd, r.value, [](int d) { return d; });
      if (lane == 0) r.value_scale[own] = scale;
      if (!owner) continue;
      warp_sync();
      auto* kept = static_cast<std::int16_t*>(c.values) + own_at * hd;
#pragma unroll 2
      for (int d = lane; d < hd; d += kLanes) kept[d] = r.value[d];
      if (lane == 0) c.value_scales[own_at] = scale;
    }
  }
  copy_async_wait<0>();
  block_sync();
  cluster_wait();  // all its blocks are there, and may be given scores

  const float none = bits_float(static_cast<int>(0xff800000u));
#pragma unroll 1
  for (int g = 2 * (warp % 4); scores && g < group; g += 8) {
    const int pair = g + 1 < group ? 2 : 1, p = from + in_block;
    const float2 two = score_two(r.tile, in_block, r.heads + g * hd, (pair - 1) * hd, hd);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (h >= pair) break;
      const float scale = of.scale * (p == own ? *r.key_scale : of_key);
      const float s = p < count ? (h == 0 ? two.x : two.y) * scale + 0.0f : none;
      float m = s;
      for (int n = 16; n > 0; n /= 2) m = max_or(m, shuffle_xor(m, n));
#pragma unroll
      for (int to = 0; to < kCluster; ++to) {
        store_remote(r.score + (g + h) * kSplit + p, to, s);
        if (lane == to) store_remote(r.most + ((g + h) * kCluster + block) * 2 + half, to, m);
      }
    }
  }
  cluster_arrive();
  block_sync();  // nobody reads keys any more
  const int pieces = width / 8;
#pragma unroll 4
  for (int i = tid; i < old * pieces; i += kThreads) {
    const int p = args.by_pieces.of(i), piece = i - p * pieces;
    copy_async16(r.tile + p * width + piece * 8, values + p * hd + block * width + piece * 8);
  }
  copy_async_commit();
  if (own >= 0)
    for (int d = tid; d < width; d += kThreads) r.tile[own * width + d] = r.value[block * width + d];
  cluster_wait();
#pragma unroll 1
  for (int g = warp; g < group; g += kWarps) soften_head(r, g, blocks);
  copy_async_wait<0>();
  block_sync();
#pragma unroll 1
  for (int i = tid; i < width / 2 * group; i += kThreads) {
    const int g = i / (width / 2), d = i % (width / 2) * 2;
    const float2 o = sum_up(r, g, d, width, count);
    const int at = block * width + d;
    const float* gates = gate != nullptr ? r.gate + g * width + d : nullptr;
#pragma unroll
    for (int n = 0; n < 2; ++n)
      finish(of, head + g, place.position, split, at + n, n == 0 ? o.x : o.y, r.end[2 * g],
             r.end[2 * g + 1], gates != nullptr ? gates + n : nullptr);
  }
}

}  // namespace

bool can_attend_step(const Queue& q, const RopeArgs& a) {
  return q.clusters && a.m <= kMaxRows && a.cache.fixed && a.cache.head_dim % 64 == 0 &&
         room(nullptr, a.heads / a.cache.kv_heads, a.cache.head_dim, a.rotary).bytes <=
             q.shared_limit;
}

void launch_attend_step(const Queue& q, const AttendStepArgs& of) {
  AttendStepArgs a = of;
  const KvLayer& c = a.rope.cache;
  a.by_pieces = divider(c.head_dim / kCluster / 8);
  const dim3 grid{static_cast<unsigned>(kCluster * a.attend.splits),
                  static_cast<unsigned>(c.kv_heads), static_cast<unsigned>(a.rope.m)};
  launch_clusters(q, "attend_step", attend_step, kCluster, grid, kThreads,
                  room(nullptr, a.rope.heads / c.kv_heads, c.head_dim, a.rope.rotary).bytes, a);
  if (a.attend.splits > 1) launch_combine(q, a.attend);
}

}  // namespace nibble::NIBBLE_CUDA_NS
