// What a block of attention_step.cu does with what lies in its shared memory, and how the row's
// splits are put together.
#pragma once
#include <type_traits>

#include "backend/cuda/rope.cuh"
#include "backend/cuda/split.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace step {

inline constexpr int kCluster = kAttendCluster, kThreads = 256, kWarps = kThreads / kLanes;
inline constexpr int kScores = kBlock + 4;  // from a head's scores to the next: other banks
static_assert(2 * kLanes == kBlock && kCluster * kBlock == kSplit);

// In shared memory, all of it a multiple of 16 bytes.
struct Room {
  std::int16_t* keys;    // [head_dim / 8][64][8]
  std::int16_t* values;  // [64][head_dim]
  float* heads;          // [group + 2][head_dim]: queries, the new key, the new value
  float* norms;          // [2][head_dim], of queries, of keys
  float* turn;           // [rotary]
  float* own;            // [group][2]: top, sum of the block's weights
  float* scales;         // [2], of the new key and value
  int* flag;
  std::size_t bytes;
  float* weight;  // [group][kScores], in place of norms, which the rotation needs
  // Once the whole cluster has its scores, in place of keys and queries:
  float* parts;   // [8][group][head_dim / 8], by block
  float* ends;    // [8][group][2], by block: top, sum
  float* shares;  // [group][8]
  float* end;     // [group][2]: top, sum of the split
};
__device__ __host__ inline Room room(char* at, int group, int hd, int rotary) {
  Room r{};
  const auto take = [&](auto*& p, int n) {
    p = reinterpret_cast<std::remove_reference_t<decltype(p)>>(at + r.bytes);
    r.bytes += (static_cast<std::size_t>(n) * sizeof *p + 15) / 16 * 16;
  };
  take(r.keys, kBlock * hd), take(r.values, kBlock * hd), take(r.heads, (group + 2) * hd);
  take(r.norms, 2 * hd > group * kScores ? 2 * hd : group * kScores), take(r.turn, rotary);
  take(r.own, group * 2), take(r.scales, 2), take(r.flag, 1);
  r.weight = r.norms, r.parts = reinterpret_cast<float*>(r.keys);
  r.ends = r.heads, r.shares = r.ends + kCluster * group * 2, r.end = r.shares + group * kCluster;
  return r;
}
// Whether what comes in place of keys and queries fits there.
__host__ inline bool fits(int group, int hd) {
  return 2 * group <= kBlock && group * (3 * kCluster + 2) <= (group + 2) * hd;
}

// A word's two 16-bit integers. Two ways, so that neither pipe has all of it.
__device__ __forceinline__ float2 two_floats(std::uint32_t word) {
  return make_float2(static_cast<float>(static_cast<std::int16_t>(word & 0xffffu)),
                     static_cast<float>(static_cast<int>(word) >> 16));
}

// Scores of two heads, q and q + pitch, on positions lane and lane + 32 of the tile: [head][i].
__device__ __forceinline__ void score_two(const std::int16_t* tile, const float* q, int pitch,
                                          int hd, float (&s)[2][2]) {
  const uint4* key = reinterpret_cast<const uint4*>(tile) + threadIdx.x % kLanes;
#pragma unroll 2
  for (int d = 0; d < hd; d += 8) {
    const uint4 v[2] = {key[d / 8 * kBlock], key[d / 8 * kBlock + kLanes]};
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // four dims
      const float4 a = *reinterpret_cast<const float4*>(q + d + 4 * i),
                   b = *reinterpret_cast<const float4*>(q + pitch + d + 4 * i);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const float2 k = two_floats(i == 0 ? v[p].x : v[p].z),
                     l = two_floats(i == 0 ? v[p].y : v[p].w);
        s[0][p] = fmaf(a.x, k.x, s[0][p]), s[1][p] = fmaf(b.x, k.x, s[1][p]);
        s[0][p] = fmaf(a.y, k.y, s[0][p]), s[1][p] = fmaf(b.y, k.y, s[1][p]);
        s[0][p] = fmaf(a.z, l.x, s[0][p]), s[1][p] = fmaf(b.z, l.x, s[1][p]);
        s[0][p] = fmaf(a.w, l.y, s[0][p]), s[1][p] = fmaf(b.w, l.y, s[1][p]);
      }
    }
  }
}

// Dims d .. d + 3 of two heads, w and w + pitch their weights, over the block's positions.
__device__ __forceinline__ void sum_two(const std::int16_t* values, const float* w, int pitch,
                                        int hd, int count, float (&o)[2][4]) {
  constexpr int kRun = 4;
  const int runs = (count + kRun - 1) / kRun;  // weights past the last position are 0
#pragma unroll 2
  for (int n = 0; n < runs; ++n) {
    const float4 of[2] = {reinterpret_cast<const float4*>(w)[n],
                          reinterpret_cast<const float4*>(w + pitch)[n]};
    uint2 v[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      v[i] = *reinterpret_cast<const uint2*>(values + (n * kRun + i) * hd);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const float2 low = two_floats(v[i].x), high = two_floats(v[i].y);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float x = i == 0 ? of[h].x : i == 1 ? of[h].y : i == 2 ? of[h].z : of[h].w;
        o[h][0] = fmaf(x, low.x, o[h][0]), o[h][1] = fmaf(x, low.y, o[h][1]);
        o[h][2] = fmaf(x, high.x, o[h][2]), o[h][3] = fmaf(x, high.y, o[h][3]);
      }
    }
  }
}

// An eighth of a head over a split: its top, its sum, then its dims.
__device__ __forceinline__ float* part_of(const AttendArgs& a, std::int64_t head, int split,
                                          int block, int width) {
  return a.parts + ((head * a.splits + split) * kCluster + block) * (width + 2);
}

// combine() of attention.cu, of the block's eighth of all its heads.
__device__ __forceinline__ void combine_eighth(const Room& r, const AttendArgs& a,
                                               std::int64_t head, int group, int block, int width,
                                               int splits) {
  constexpr int kRun = 16;  // values that a thread loads at once
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kLanes;
  const float none = bits_float(static_cast<int>(0xff800000u));
  float *const weight = r.parts, *const sum = weight + group * kLanes;
#pragma unroll 1
  for (int from = 0; from < group * width; from += kThreads) {
    const int i = from + tid, g = i / width, d = i % width;
    const bool has = i < group * width;
    const std::int64_t at = head + g;
    const float* gate =
        a.gate != nullptr && has ? a.gate + at * a.gate_pitch + block * width + d : nullptr;
    const float of_gate = gate != nullptr ? *gate : 0;
    float x[kRun], o = 0, total = 0;
    const auto load = [&](int s) {
#pragma unroll
      for (int j = 0; j < kRun; ++j)
        x[j] = has && s + j < splits ? load_fresh(part_of(a, at, s + j, block, width) + 2 + d) : 0;
#pragma unroll
      for (int j = 0; j < kRun; ++j) hold(x[j]);
    };
    load(0);
#pragma unroll 1
    for (int first = 0; first < splits; first += kLanes) {
#pragma unroll 1
      for (int h = tid / kLanes; h < group; h += kWarps) {
        const auto top_at = [&](int s) {
          return s < splits ? load_fresh(part_of(a, head + h, s, block, width)) : none;
        };
        const float mine = top_at(first + lane);
        const float its = first + lane < splits
                              ? load_fresh(part_of(a, head + h, first + lane, block, width) + 1)
                              : 0;
        if (first == 0) {
          float top = mine;
          for (int s = kLanes + lane; s < splits; s += kLanes) top = max_or(top, top_at(s));
          for (int n = kLanes / 2; n > 0; n /= 2) top = max_or(top, shuffle_xor(top, n));
          if (lane == 0) r.end[h] = top;
          warp_sync();
        }
        weight[h * kLanes + lane] = exp_cut(mine - r.end[h]), sum[h * kLanes + lane] = its;
      }
      block_sync();
      const int n = splits - first < kLanes ? splits - first : kLanes;
#pragma unroll 1
      for (int s = 0; s < n; s += kRun) {
        if (first + s > 0) load(first + s);
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          if (!has || s + j >= n) break;
          total = fmaf(weight[g * kLanes + s + j], sum[g * kLanes + s + j], total);
          o = fmaf(weight[g * kLanes + s + j], x[j], o);
        }
      }
      block_sync();  // the next ones take their place
    }
    if (!has) continue;
    o = o / total;
    if (gate != nullptr) o = o * sigmoid(of_gate);
    a.out[at * (width * kCluster) + block * width + d] = o;
  }
}

}  // namespace step
}  // namespace nibble::NIBBLE_CUDA_NS
