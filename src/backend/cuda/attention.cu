// RMSNorm of heads, RoPE and the KV cache; attention of one row over a split of at most 512
// positions, and the combination of splits. The CPU's order (simd/attention.inl): a score is one
// chain over head_dim; a block of 64 positions has its own maximum, sum of weights and chain of an
// output dim over its positions; a split adds its blocks in order, and the whole its splits. Blocks
// and splits lie at absolute positions.
//
// rope_cache: a warp a head and row. attend: a block a split, query head and row: scores of the
// whole split (a thread a position), weights of its blocks in order, then a thread an output dim.
// Bytes: keys and values of the row's past, once a query head (heads of a group share them in L2).
#include "backend/cuda/rope.cuh"
#include "backend/cuda/split.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kThreads = 256;
static_assert(kThreads / kLanes == kSplit / kBlock);  // a warp a block

__global__ void __launch_bounds__(kLanes) rope_cache(const __grid_constant__ RopeArgs a) {
  start_next(), await_last();
  const int lane = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.y),
            hd = a.cache.head_dim;
  const bool query = static_cast<int>(blockIdx.x) < a.heads;
  const int head = static_cast<int>(blockIdx.x) - (query ? 0 : a.heads);
  float* y = reinterpret_cast<float*>(shared_memory());  // [head_dim]
  float* v = y + hd;                                     // [head_dim], of a key's head
  float* weight = v + hd;                                // [head_dim]
  float* turn = weight + hd;                             // [rotary]
  const std::int64_t at =
      static_cast<std::int64_t>(row) * (query ? a.heads : a.cache.kv_heads) + head;
  const float* x = query ? a.q + at * a.q_pitch : a.k + at * hd;
  const float* norm = query ? a.q_norm : a.k_norm;
  const float* cos_sin = a.cos_sin + static_cast<std::int64_t>(row) * a.rotary;
  constexpr int kRun = 8;
#pragma unroll 1
  for (int from = lane; from < hd; from += kRun * kLanes) {  // no load waits for another
    float of_x[kRun] = {}, of_norm[kRun] = {}, of_v[kRun] = {}, of_turn[kRun] = {};
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int d = from + i * kLanes;
      if (d >= hd) break;
      of_x[i] = x[d];
      if (norm != nullptr) of_norm[i] = norm[d];
      if (!query) of_v[i] = a.v[at * hd + d];
      if (d < a.rotary) of_turn[i] = cos_sin[d];
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) hold(of_x[i]), hold(of_norm[i]), hold(of_v[i]), hold(of_turn[i]);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int d = from + i * kLanes;
      if (d >= hd) break;
      y[d] = of_x[i], weight[d] = of_norm[i], v[d] = of_v[i];
      if (d < a.rotary) turn[d] = of_turn[i];
    }
  }
  warp_sync();
  turn_head(y, norm != nullptr ? weight : nullptr, a.offset, a.eps, hd, turn, a.rotary);
  if (query) {
#pragma unroll 2
    for (int d = lane; d < hd; d += kLanes) a.q_out[at * hd + d] = y[d];
    return;
  }
  const Place place = a.rows[row];
  const std::int64_t to = vector_index(a.cache, place, head);
  const std::int64_t head_at = (to - place.position) * hd;
  const auto key = [&](int d) { return key_index(a.cache, place.position, d); };
  if (!a.cache.fixed) {
    float* keys = static_cast<float*>(a.cache.keys) + head_at;
    float* values = static_cast<float*>(a.cache.values) + to * hd;
#pragma unroll 1
    for (int d = lane; d < hd; d += kLanes) keys[key(d)] = y[d], values[d] = v[d];
    return;
  }
  const float ks = store_fixed(y, hd, static_cast<std::int16_t*>(a.cache.keys) + head_at, key);
  const float vs = store_fixed(v, hd, static_cast<std::int16_t*>(a.cache.values) + to * hd,
                               [](int d) { return d; });
  if (lane == 0) a.cache.key_scales[to] = ks, a.cache.value_scales[to] = vs;
}

__global__ void __launch_bounds__(kThreads, 2) attend(const __grid_constant__ AttendArgs a) {
  start_next();
  const int split = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y),
            row = static_cast<int>(blockIdx.z), tid = static_cast<int>(threadIdx.x);
  const KvLayer& c = a.cache;
  const int hd = c.head_dim, kv = head / (a.heads / c.kv_heads);
  // They come by a copy, which no launch overlaps.
  const Place place{load_fresh(&a.rows[row].slot), load_fresh(&a.rows[row].position)};
  const int begin = split * kSplit, past = place.position + 1 - begin;  // positions from begin on
  if (past <= 0) return;
  const int count = past < kSplit ? past : kSplit, blocks = (count + kBlock - 1) / kBlock;
  const std::int64_t first = vector_index(c, {place.slot, begin}, kv);  // of scales and values
  if (tid == 0) {  // the second cache may have them before they may be read
    const int size = kBlock * hd * (c.fixed ? 2 : 4), group = a.heads / c.kv_heads;
    for (int b = head % group; b < blocks; b += group) {  // a block's keys lie as its values do
      const std::int64_t from = first * (size / kBlock) + std::int64_t{b} * size;
      prefetch(static_cast<const char*>(c.keys) + from, size);
      prefetch(static_cast<const char*>(c.values) + from, size);
    }
  }
  await_last();
  float* q = reinterpret_cast<float*>(shared_memory());  // [head_dim]
  float* score = q + hd;                                 // [512], later weights
  float* most = score + kSplit;                          // [8], by block
  float* sums = most + kSplit / kBlock;                  // [8], by block
  float* share = sums + kSplit / kBlock;                 // [8], by block
  float* sum = share + kSplit / kBlock;                  // [1]
  float* top = sum + 1;                                  // [1]
  const std::int64_t at = static_cast<std::int64_t>(row) * a.heads + head;
  for (int d = tid; d < hd; d += kThreads) q[d] = a.q[at * hd + d];
  float of_gate = a.gate != nullptr && tid < hd ? a.gate[at * a.gate_pitch + tid] : 0;
  hold(of_gate);  // it comes meanwhile
  block_sync();

  const std::int64_t head_at = (first - begin) * hd;
  const float none = bits_float(static_cast<int>(0xff800000u));
  const int lane = tid % kLanes, warp = tid / kLanes;
  float of_value[2] = {1.0f, 1.0f};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (c.fixed && warp < blocks)
      of_value[i] = c.value_scales[first + warp * kBlock + lane + kLanes * i];
    hold(of_value[i]);  // it comes while the scores do
  }
  for (int i = tid; i < blocks * kBlock; i += kThreads) {
    float s = 0, of_key = c.fixed && i < count ? c.key_scales[first + i] : 1.0f;
    hold(of_key);  // likewise
    each_eight<16>(c, head_at + key_index(c, begin + i, 0), [&](int d, const float(&k)[8]) {
      const float4* of = reinterpret_cast<const float4*>(q + d);
      const float4 low = of[0], high = of[1];
      const float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int j = 0; j < 8; ++j) s = fmaf(x[j], k[j], s);
    });
    const float scale = a.scale * of_key;
    score[i] = i < count ? s * scale + 0.0f : none;
  }
  block_sync();

  if (warp < blocks) {  // a warp a block
    float* own = score + warp * kBlock + lane;
    const Softened of = soften({own[0], own[kLanes]});
#pragma unroll
    for (int i = 0; i < 2; ++i) own[i * kLanes] = of.e[i] * of_value[i];
    if (lane == 0) most[warp] = of.top, sums[warp] = of.sum;
  }
  block_sync();
  if (warp == 0) {
    const Shares of = share_out(lane < blocks ? most[lane] : none, lane < blocks ? sums[lane] : 0);
    if (lane < blocks) share[lane] = of.share;
    if (lane == 0) *sum = of.sum, *top = of.top;
  }
  block_sync();

  for (int d = tid; d < hd; d += kThreads) {
    float all = 0;
    for (int b = 0; b < blocks; ++b) {
      float o = 0;
      const int n = count - b * kBlock < kBlock ? count - b * kBlock : kBlock;
      const std::int64_t from = (first + b * kBlock) * hd + d;
      const float4* w = reinterpret_cast<const float4*>(score + b * kBlock);
      const auto add = [&](const auto* v) {  // a run's loads before its sums
        if (n == kBlock) {
          float x[kBlock];
#pragma unroll
          for (int i = 0; i < kBlock; ++i) x[i] = static_cast<float>(v[i * hd]);
#pragma unroll
          for (int i = 0; i < kBlock; i += 4) {
            const float4 four = w[i / 4];
            o = fmaf(four.x, x[i], o), o = fmaf(four.y, x[i + 1], o);
            o = fmaf(four.z, x[i + 2], o), o = fmaf(four.w, x[i + 3], o);
          }
          return;
        }
        constexpr int kRun = 16;
        const float* one = score + b * kBlock;
#pragma unroll 1
        for (int p = 0; p < n; p += kRun) {
          float x[kRun];
#pragma unroll
          for (int i = 0; i < kRun; ++i)
            x[i] = static_cast<float>(v[(p + i < n ? p + i : n - 1) * hd]);
#pragma unroll
          for (int i = 0; i < kRun; ++i) hold(x[i]);
#pragma unroll
          for (int i = 0; i < kRun; ++i)
            if (p + i < n) o = fmaf(one[p + i], x[i], o);
        }
      };
      if (c.fixed)
        add(static_cast<const std::int16_t*>(c.values) + from);
      else
        add(static_cast<const float*>(c.values) + from);
      all = fmaf(share[b], o, all);
    }
    const float* gate = a.gate == nullptr ? nullptr
                        : d == tid        ? &of_gate
                                          : a.gate + at * a.gate_pitch + d;
    finish(a, at, place.position, split, d, all, *sum, *top, gate);
  }
}

// Splits in ascending order, a thread an output dim.
__global__ void __launch_bounds__(kThreads) combine(const __grid_constant__ AttendArgs a) {
  start_next();
  const int head = static_cast<int>(blockIdx.x), row = static_cast<int>(blockIdx.y),
            hd = a.cache.head_dim, tid = static_cast<int>(threadIdx.x);
  const int splits = (load_fresh(&a.rows[row].position) + kSplit) / kSplit;
  await_last();
  if (splits == 1) return;  // it is finished
  const std::int64_t at = static_cast<std::int64_t>(row) * a.heads + head;
  const std::int64_t pitch = hd + 2;
  const float* parts = a.parts + at * a.splits * pitch;
  float* weight = reinterpret_cast<float*>(shared_memory());  // [splits], at first their tops
  float* sum = weight + splits;                               // [splits]
  constexpr int kRun = 8;
  float x[kRun];
  const auto load = [&](int from, int d) {
#pragma unroll
    for (int i = 0; i < kRun; ++i) x[i] = from + i < splits ? parts[(from + i) * pitch + 2 + d] : 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) hold(x[i]);
  };
  for (int i = tid; i < splits; i += kThreads)
    weight[i] = parts[i * pitch], sum[i] = parts[i * pitch + 1];
  if (tid < hd) load(0, tid);
  block_sync();
  float top = weight[0], total = 0;
  for (int i = 1; i < splits; ++i) top = weight[i] > top ? weight[i] : top;
  block_sync();
  for (int i = tid; i < splits; i += kThreads) weight[i] = exp_cut(weight[i] - top);
  block_sync();
  for (int i = 0; i < splits; ++i) total = fmaf(weight[i], sum[i], total);
  for (int d = tid; d < hd; d += kThreads) {
    float o = 0;
#pragma unroll 1
    for (int from = 0; from < splits; from += kRun) {
      if (from > 0 || d > tid) load(from, d);
#pragma unroll
      for (int i = 0; i < kRun; ++i)
        if (from + i < splits) o = fmaf(weight[from + i], x[i], o);
    }
    o = o / total;
    if (a.gate != nullptr) o = o * sigmoid(a.gate[at * a.gate_pitch + d]);
    a.out[at * hd + d] = o;
  }
}

}  // namespace

void launch_rope_cache(const Queue& q, const RopeArgs& a) {
  const dim3 grid{static_cast<unsigned>(a.heads + a.cache.kv_heads), static_cast<unsigned>(a.m)};
  launch(q, "rope_cache", rope_cache, grid, kLanes,
         sizeof(float) * static_cast<std::size_t>(3 * a.cache.head_dim + a.rotary), a);
}

void launch_attention(const Queue& q, const AttendArgs& a) {
  const dim3 grid{static_cast<unsigned>(a.splits), static_cast<unsigned>(a.heads),
                  static_cast<unsigned>(a.m)};
  const std::size_t shared =
      sizeof(float) * static_cast<std::size_t>(a.cache.head_dim + kSplit + 3 * kSplit / kBlock + 2);
  if (a.in_runs)
    launch_attend_rows(q, a);
  else
    launch(q, "attend", attend, grid, kThreads, shared, a);
  if (a.splits > 1)
    launch(q, "combine", combine, dim3{static_cast<unsigned>(a.heads), static_cast<unsigned>(a.m)},
           kThreads, 2 * sizeof(float) * static_cast<std::size_t>(a.splits), a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
