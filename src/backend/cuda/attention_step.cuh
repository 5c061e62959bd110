// What a block of attention_step.cu does with what lies in its shared memory, and how the row's
// splits are put together.
#pragma once
#include <type_traits>

#include "backend/cuda/rope.cuh"
#include "backend/cuda/split.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace step {

inline constexpr int kCluster = kAttendCluster, kThreads = 256, kWarps = kThreads / kLanes;
inline constexpr int kScores = kSplit + 4;  // from a head's scores to the next: other banks
static_assert(2 * kLanes == kBlock && kCluster * kBlock == kSplit);

// In shared memory, all of it a multiple of 16 bytes.
struct Room {
  std::int16_t* tile;   // [head_dim / 8][64][8] keys, then [512][head_dim / 8] values
  float* score;         // [group][kScores], later weights
  float* heads;         // [group + 2][head_dim]: queries, the new key, the new value
  float* norms;         // [2][head_dim], of queries, of keys
  float* turn;          // [rotary]
  float* value_scale;   // [512]
  float* most;          // [group][8], by block
  float* shrink;        // [group][8], by block
  float* end;           // [group][2]: sum, top
  float* gate;          // [group][head_dim / 8]
  std::int16_t* value;  // [head_dim], the new one
  float* key_scale;     // of the new one
  int* flag;
  std::size_t bytes;
};
__device__ __host__ inline Room room(char* at, int group, int hd, int rotary) {
  Room r{};
  const auto take = [&](auto*& p, int n) {
    p = reinterpret_cast<std::remove_reference_t<decltype(p)>>(at + r.bytes);
    r.bytes += (static_cast<std::size_t>(n) * sizeof *p + 15) / 16 * 16;
  };
  take(r.tile, kBlock * hd), take(r.score, group * kScores), take(r.heads, (group + 2) * hd);
  take(r.norms, 2 * hd), take(r.turn, rotary), take(r.value_scale, kSplit);
  take(r.most, group * kCluster), take(r.shrink, group * kCluster), take(r.end, group * 2);
  take(r.gate, group * hd / kCluster), take(r.value, hd), take(r.key_scale, 1);
  take(r.flag, 1);
  return r;
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

// attend()'s softmax of a head over the blocks of a split. Whole warp. By two blocks; one past the
// last changes nothing. (Code that runs once takes its time to come: it is kept short.)
__device__ __forceinline__ void soften_head(const Room& r, int g, int blocks) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const float none = bits_float(static_cast<int>(0xff800000u));
  float* score = r.score + g * kScores + lane;
  float now = none, sum = 0;
#pragma unroll 1
  for (int first = 0; first < blocks; first += 2) {
    float e[2][2], less[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int b = first + n;
      const float most = b < blocks ? r.most[g * kCluster + b] : none,
                  next = most > now ? most : now;
      less[n] = now == none ? 0.0f : exp_cut(now - next);
      now = next;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int p = b * kBlock + i * kLanes;
        e[n][i] = exp_cut((b < blocks ? score[p] : none) - next);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int b = first + n;
      if (lane == 0) r.shrink[g * kCluster + b] = less[n];
      sum = sum * less[n];
#pragma unroll
      for (int i = 0; i < 4; ++i)  // lane l adds positions l, l + 16, ...; lanes 16.. do the same
        sum = sum + shuffle(e[n][i / 2], i % 2 * 16 + lane % 16);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int p = b * kBlock + i * kLanes;
        score[p] = e[n][i] * r.value_scale[p + lane];
      }
    }
  }
  sum = add_sixteen(sum);
  if (lane == 0) r.end[2 * g] = sum, r.end[2 * g + 1] = now;
}

// Dims d and d + 1 of the block's eighth, of a head, over `count` positions.
__device__ __forceinline__ float2 sum_up(const Room& r, int g, int d, int width, int count) {
  float2 o{0, 0};
  const std::uint32_t* v = reinterpret_cast<const std::uint32_t*>(r.tile + d);
  const float* w = r.score + g * kScores;
  const int pitch = width / 2;
  constexpr int kRun = 8;
  const auto shrink = [&](int at) {
    if (at % kBlock != 0) return;
    const float less = r.shrink[g * kCluster + at / kBlock];
    o.x = o.x * less, o.y = o.y * less;
  };
  // A run is loaded while the one before it is added.
  std::uint32_t x[2][kRun];
  float4 four[2][kRun / 4];
  const auto load = [&](int to, int at) {
#pragma unroll
    for (int i = 0; i < kRun; ++i) x[to][i] = v[(at + i) * pitch];
#pragma unroll
    for (int i = 0; i < kRun / 4; ++i) four[to][i] = reinterpret_cast<const float4*>(w + at)[i];
  };
  const int even = count / kRun * kRun;
  if (even > 0) load(0, 0);
#pragma unroll 1
  for (int begin = 0; begin < even; begin += 2 * kRun) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int at = begin + n * kRun;
      if (at >= even) break;
      load(1 - n, at + kRun < even ? at + kRun : at);
      shrink(at);
      float2 f[kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        f[i] = two_floats(x[n][i]);
        hold(f[i].x), hold(f[i].y);
      }
#pragma unroll
      for (int i = 0; i < kRun / 4; ++i) {
        const float of[4] = {four[n][i].x, four[n][i].y, four[n][i].z, four[n][i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j)
          o.x = fmaf(of[j], f[4 * i + j].x, o.x), o.y = fmaf(of[j], f[4 * i + j].y, o.y);
      }
    }
  }
#pragma unroll 1
  for (int p = even; p < count; ++p) {
    shrink(p);
    const float2 f = two_floats(v[p * pitch]);
    o.x = fmaf(w[p], f.x, o.x), o.y = fmaf(w[p], f.y, o.y);
  }
  return o;
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
  float *const weight = r.score, *const sum = weight + group * kLanes;
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
