// Attention of prompts in fp16 (Activations::Half), by matrix instructions; sums in fp32.
//
//   x_j = (q . k_j) key_scale_j scale log2(e) + power_j,   w_j = 2^(x_j - max x + 15)
//   out = sum w_j v_j / sum w_j 2^-power_j   (* sigmoid(gate), when given)
// where v_j is the value less its scale's power of two: what fp16 loses is lost in the sums anyway.
//
// keys_values_half, two blocks per 64 positions and kv head: the cache's integers become tiles of
// fp16 in the order of mma's fragments, once for all rows of a step.
//
// attend_half, a block per 96 rows, which are (position, query head) pairs of one group and kv
// head: a warp has 16 of them and walks the sequence's tiles of 64 positions from position 0 on,
// scores and output in registers. Tiles come by asynchronous copies, one ahead (132 KB; q takes 48
// KB). A row's sums are its own, whichever row of the matrix instruction it has: its bits depend on
// nothing but its past. A block reads all tiles of its past from L2; those with the longest come
// first.
#include <type_traits>

#include "backend/cuda/split.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

// Six warps, so that a prompt of 1,024 rows has blocks for all multiprocessors, twice for some.
constexpr int kThreads = 6 * kLanes, kRows = kThreads / kLanes * 16, kMakers = 256, kMostDims = 256;
constexpr float kUp = 15;                    // weights up to 2^15: fp16 has 39 bits below
constexpr int kScaleBytes = 3 * kBlock * 4;  // of a tile: key_scale, power, 2^-power

// HD: head_dim rounded up; dims past it are zero.
constexpr int plane_bytes(int hd) { return kBlock * hd * 2; }  // of a tile's keys, or its values
constexpr int tile_bytes(int hd) { return 2 * plane_bytes(hd) + kScaleBytes; }

// scale = mantissa 2^power. A scale that is not finite makes power NaN, and with it the sums of the
// rows that see it; but zero times a value must be zero for those that do not.
struct Parts {
  float mantissa, power, inverse;
};
__device__ __forceinline__ Parts parts(float scale) {
  constexpr int kLeast = -60;  // so that sums of w_j 2^-power_j stay in fp32's range
  const int exponent = (float_bits(scale) >> 23 & 255) - 126,
            power = exponent > kLeast ? exponent : kLeast;
  if (exponent == 255 - 126) return {0.0f, bits_float(0x7fc00000), 1.0f};
  const float inverse = bits_float((127 - power) * (1 << 23));
  return {scale * inverse, static_cast<float>(power), inverse};
}

// Of two integers in a word, the one that `high` says.
__device__ __forceinline__ float integer(std::uint32_t word, int high) {
  return static_cast<float>(static_cast<std::int16_t>(word >> (16 * high) & 0xffff));
}
__device__ __forceinline__ std::uint32_t integers_to_halves(std::uint32_t word) {
  return to_halves(integer(word, 0), integer(word, 1));
}

// A tile, in 16 bytes of lane 4 g + t:
//   keys    [dim / 32][key / 8][lane]: key g, dims 8 t .. 8 t + 7: B of two mma over 32 dims, which
//           go in the order that q's fragments have too
//   values  [key / 32][dim / 8][lane]: dim g, keys 2 t, 2 t + 1 and those 8, 16 and 24 further on:
//           B of two mma over 32 keys, as the scores' fragments follow each other
template <int HD>
__global__ void __launch_bounds__(kMakers)
    keys_values_half(const __grid_constant__ HalfAttendArgs h) {
  constexpr int kPlane = plane_bytes(HD), kTileBytes = tile_bytes(HD);
  start_next(), await_last();
  const HalfSequence& s = h.sequence[blockIdx.z];
  const KvLayer& c = h.of.cache;
  const int block = static_cast<int>(blockIdx.x) / 2, kv = static_cast<int>(blockIdx.y),
            tid = static_cast<int>(threadIdx.x), eights = c.head_dim / 8;
  if (block >= s.blocks) return;
  const std::int64_t first = vector_index(c, {s.slot, block * kBlock}, kv);
  char* const tile = static_cast<char*>(h.tiles) +
                     static_cast<std::int64_t>(s.tile + kv * s.blocks + block) * kTileBytes;
  const uint4 zero = make_uint4(0, 0, 0, 0);

  if (blockIdx.x % 2 == 0) {
    const uint4* keys = reinterpret_cast<const uint4*>(static_cast<const std::int16_t*>(c.keys) +
                                                       first * c.head_dim);
    uint4* to = reinterpret_cast<uint4*>(tile);
#pragma unroll 4
    for (int i = tid; i < kBlock * HD / 8; i += kMakers) {
      const int key = i % kMakers / 4, eight = i / kMakers * 4 + i % 4;
      const uint4 k = eight < eights ? keys[eight * kBlock + key] : zero;
      to[i] = make_uint4(integers_to_halves(k.x), integers_to_halves(k.y), integers_to_halves(k.z),
                         integers_to_halves(k.w));
    }
    float* scales = reinterpret_cast<float*>(tile + 2 * kPlane);
    if (tid < kBlock) {
      const Parts p = parts(c.value_scales[first + tid]);
      scales[tid] = c.key_scales[first + tid];
      scales[kBlock + tid] = p.power, scales[2 * kBlock + tid] = p.inverse;
    }
    return;
  }
  const uint4* values = reinterpret_cast<const uint4*>(static_cast<const std::int16_t*>(c.values) +
                                                       first * c.head_dim);
  uint4* to = reinterpret_cast<uint4*>(tile + kPlane);
  for (int i = tid; i < HD; i += kMakers) {  // 8 dims of 8 keys
    const int t = i % 4, eight = i / 4 % (HD / 8), key0 = i / 4 / (HD / 8) * 32 + 2 * t;
    uint4 v[8];
    float mantissa[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int key = key0 + j / 2 * 8 + j % 2;
      v[j] = eight < eights ? values[key * eights + eight] : zero;
      mantissa[j] = parts(c.value_scales[first + key]).mantissa;
    }
#pragma unroll
    for (int g = 0; g < 8; ++g) {
      std::uint32_t halves[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const auto at = [&](int j) {
          const std::uint32_t words[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
          return integer(words[g / 2], g % 2) * mantissa[j];
        };
        halves[w] = to_halves(at(2 * w), at(2 * w + 1));
      }
      to[i / 4 * kLanes + 4 * g + t] = make_uint4(halves[0], halves[1], halves[2], halves[3]);
    }
  }
}

// Eight of every 32 dims of a row of q, in fp32. null: zeros.
template <int HD>
struct Query {
  float4 x[HD / 32][2];
  __device__ __forceinline__ Query(const float* q, int head_dim, int t) {
#pragma unroll
    for (int i = 0; i < HD / 32; ++i) {
      const int d = 32 * i + 8 * t;
      const float4* from = reinterpret_cast<const float4*>(q + d);
#pragma unroll
      for (int j = 0; j < 2; ++j)
        x[i][j] = q != nullptr && d < head_dim ? from[j] : float4{0, 0, 0, 0};
    }
  }
  // In fp16, times a power of two that brings the row's largest to 2^14 and more, to words 0 and 2
  // of A's fragments [dim / 16][lane]. Returns what brings a product to the scores' scale.
  __device__ __forceinline__ float store(float scale, std::uint32_t* to) const {
    int largest = 0;
#pragma unroll
    for (int i = 0; i < HD / 16; ++i) {
      const float4& y = x[i / 2][i % 2];
      const float four[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int bits = float_bits(four[k]) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
      }
    }
    for (int n = 1; n < 4; n *= 2) {
      const int other = shuffle_xor(largest, n);
      largest = other > largest ? other : largest;
    }
    const int field = largest >> 23, exponent = field > 20 ? field : 20;
    const float up = bits_float((254 + 14 - exponent) * (1 << 23));
#pragma unroll
    for (int i = 0; i < HD / 16; ++i) {
      const float4& y = x[i / 2][i % 2];
      to[i * kLanes * 4] = to_halves(y.x * up, y.y * up);
      to[i * kLanes * 4 + 2] = to_halves(y.z * up, y.w * up);
    }
    return bits_float((exponent - 14) * (1 << 23)) * (scale * 1.44269504f);
  }
};

template <int HD>
__global__ void __launch_bounds__(kThreads, 1)
    attend_half(const __grid_constant__ HalfAttendArgs h) {
  constexpr int kPlane = plane_bytes(HD), kTileBytes = tile_bytes(HD);
  constexpr int kTurn = kThreads * 16, kWhole = kTileBytes / kTurn * kTurn;  // of copies
  start_next(), await_last();
  const AttendArgs& a = h.of;
  const KvLayer& c = a.cache;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kLanes, warp = tid / kLanes,
            g = lane / 4, t = lane % 4, ratio = a.heads / c.kv_heads,
            parts = (kBlock * ratio + kRows - 1) / kRows, jobs = parts * c.kv_heads,
            job = static_cast<int>(blockIdx.x) % jobs, kv = job / parts,
            first = job % parts * kRows;
  const HalfGroup& group = h.group[static_cast<int>(blockIdx.x) / jobs];
  const int rows = group.rows * ratio, blocks = group.position / kBlock + 1;
  if (first >= rows) return;
  const bool idle = first + 16 * warp >= rows;

  char* const tiles = shared_memory();  // two, then q [warp][dim / 16][lane]
  uint4* const q =
      reinterpret_cast<uint4*>(tiles + 2 * kTileBytes) + warp * (HD / 16) * kLanes + lane;
  struct Row {
    int place, last;  // in q and out, or -1; key of the last tile that it sees
  };
  Row* const own = reinterpret_cast<Row*>(tiles + 2 * kTileBytes + kRows * HD * 2) + warp * 16 + g;
  const HalfSequence& sequence = h.sequence[group.sequence];
  const char* from = static_cast<const char*>(h.tiles) +
                     static_cast<std::int64_t>(sequence.tile + kv * sequence.blocks) * kTileBytes +
                     tid * 16;
  const auto bring = [&](int block) {
    char* to = tiles + block % 2 * kTileBytes + tid * 16;
#pragma unroll
    for (int i = 0; i < kWhole; i += kTurn) copy_async16(to + i, from + i);
    if (tid * 16 < kTileBytes - kWhole) copy_async16(to + kWhole, from + kWhole);
    from += kTileBytes;
    copy_async_commit();
  };
  bring(0);

  // Rows g (r = 0) and g + 8 (1) of the warp's 16: kept apart, for registers are few.
  const auto query = [&](int r) {
    const int i = first + 16 * warp + g + 8 * r, row = i / ratio;
    const int place = i < rows ? (group.row + row) * a.heads + kv * ratio + i % ratio : -1;
    if (t == 0) own[8 * r] = {place, group.position % kBlock + row};
    if (t == 0 && place >= 0 && a.gate != nullptr && a.gate_pitch % 4 == 0)  // wanted at the end
      prefetch(a.gate + static_cast<std::int64_t>(place) * a.gate_pitch, c.head_dim * 4);
    return Query<HD>(place < 0 ? nullptr : a.q + static_cast<std::int64_t>(place) * c.head_dim,
                     c.head_dim, t);
  };
  float scale[2];
  {
    const Query<HD> low = query(0), high = query(1);
    scale[0] = low.store(a.scale, reinterpret_cast<std::uint32_t*>(q));
    scale[1] = high.store(a.scale, reinterpret_cast<std::uint32_t*>(q) + 1);
  }

  const float none = bits_float(static_cast<int>(0xff800000u));
  float o[HD / 8][4] = {}, most[2] = {none, none}, sum[2] = {};
#pragma unroll 1
  for (int block = 0; block < blocks; ++block) {
    copy_async_wait<0>();
    block_sync();  // this tile is there for all, and nobody reads the last one
    if (block + 1 < blocks) bring(block + 1);
    if (idle) continue;
    const char* const tile = tiles + block % 2 * kTileBytes;
    const uint4* keys = reinterpret_cast<const uint4*>(tile) + lane;
    const uint4* values = reinterpret_cast<const uint4*>(tile + kPlane) + lane;
    const float2* scales = reinterpret_cast<const float2*>(tile + 2 * kPlane) + t;

    float s[8][4] = {};  // keys 8 n + 2 t, + 1 of row g, then of row g + 8
#pragma unroll
    for (int i = 0; i < HD / 32; ++i) {
      const uint4 low = q[2 * i * kLanes], high = q[(2 * i + 1) * kLanes];  // 16 dims each
      uint4 k[8];
#pragma unroll
      for (int n = 0; n < 8; ++n) k[n] = keys[(8 * i + n) * kLanes];
#pragma unroll
      for (int n = 0; n < 8; ++n) mma_f16(s[n], low.x, low.y, low.z, low.w, k[n].x, k[n].y);
#pragma unroll
      for (int n = 0; n < 8; ++n) mma_f16(s[n], high.x, high.y, high.z, high.w, k[n].z, k[n].w);
    }

#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 of_key = scales[4 * n], power = scales[kBlock / 2 + 4 * n];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[n][i] = fmaf(s[n][i] * (i % 2 == 0 ? of_key.x : of_key.y), scale[i / 2],
                       i % 2 == 0 ? power.x : power.y);
    }
    if (block + 1 == blocks) {
      const int last[2] = {own[0].last - 2 * t, own[8].last - 2 * t};
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (8 * n + i % 2 > last[i / 2]) s[n][i] = none;
    }
    float top[2] = {most[0], most[1]};
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) top[i / 2] = fmaxf(top[i / 2], s[n][i]);
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(top[r], shuffle_xor(top[r], 1));
      top[r] = fmaxf(top[r], shuffle_xor(top[r], 2));
      shrink[r] = exp2_near(most[r] - top[r]);
      most[r] = top[r];
      sum[r] = sum[r] * shrink[r];
      top[r] = top[r] - kUp;
    }
    if (first_lane(shrink[0] != 1.0f || shrink[1] != 1.0f) < kLanes) {
#pragma unroll
      for (int n = 0; n < HD / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] = o[n][i] * shrink[i / 2];
    }
    std::uint32_t w[8][2];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 inverse = scales[kBlock + 4 * n];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = exp2_near(s[n][i] - top[i / 2]);
        sum[i / 2] = fmaf(s[n][i], i % 2 == 0 ? inverse.x : inverse.y, sum[i / 2]);
      }
      w[n][0] = to_halves(s[n][0], s[n][1]), w[n][1] = to_halves(s[n][2], s[n][3]);
    }

#pragma unroll
    for (int i = 0; i < 2; ++i) {  // 32 keys
      const std::uint32_t(*of)[2] = w + 4 * i;
#pragma unroll
      for (int n0 = 0; n0 < HD / 8; n0 += 8) {
        uint4 v[8];
#pragma unroll
        for (int n = 0; n < 8; ++n) v[n] = values[(i * (HD / 8) + n0 + n) * kLanes];
#pragma unroll
        for (int n = 0; n < 8; ++n)
          mma_f16(o[n0 + n], of[0][0], of[0][1], of[1][0], of[1][1], v[n].x, v[n].y);
#pragma unroll
        for (int n = 0; n < 8; ++n)
          mma_f16(o[n0 + n], of[2][0], of[2][1], of[3][0], of[3][1], v[n].z, v[n].w);
      }
    }
  }

#pragma unroll
  for (int n = 1; n < 4; n *= 2) {
    sum[0] = sum[0] + shuffle_xor(sum[0], n);
    sum[1] = sum[1] + shuffle_xor(sum[1], n);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const std::int64_t at = own[8 * r].place;
    if (at < 0) continue;
    const float inverse = 1.0f / sum[r];
    float* const out = a.out + at * c.head_dim + 2 * t;
    const float* const gate = a.gate != nullptr ? a.gate + at * a.gate_pitch + 2 * t : nullptr;
    float x[HD / 4];  // what the gate lets through; all loads go out before the first is used
    if (gate != nullptr) {
#pragma unroll
      for (int i = 0; i < HD / 4; ++i) x[i] = gate[(4 * i < c.head_dim ? i / 2 * 8 : 0) + i % 2];
#pragma unroll
      for (int i = 0; i < HD / 4; ++i) x[i] = sigmoid_near(x[i]);
    } else {
#pragma unroll
      for (int i = 0; i < HD / 4; ++i) x[i] = 1.0f;
    }
#pragma unroll
    for (int n = 0; n < HD / 8; ++n)
      if (8 * n < c.head_dim)
        *reinterpret_cast<float2*>(out + 8 * n) =
            make_float2(o[n][2 * r] * inverse * x[2 * n], o[n][2 * r + 1] * inverse * x[2 * n + 1]);
  }
}

constexpr std::size_t shared_bytes(int hd) {
  return static_cast<std::size_t>(2 * tile_bytes(hd) + kRows * (hd * 2 + 8));
}

// f(a value of the type whose ::value is head_dim rounded up)
template <class F>
auto with_dims(int head_dim, F&& f) {
  if (head_dim <= 64) return f(std::integral_constant<int, 64>{});
  if (head_dim <= 128) return f(std::integral_constant<int, 128>{});
  return f(std::integral_constant<int, kMostDims>{});
}

}  // namespace

bool can_attend_half(const Queue& q, const KvLayer& c) {
  return c.fixed && c.head_dim <= kMostDims && with_dims(c.head_dim, [&](auto hd) {
           return shared_bytes(decltype(hd)::value) <= q.shared_limit;
         });
}

std::size_t half_tile_bytes(int head_dim) {
  return with_dims(head_dim,
                   [](auto hd) -> std::size_t { return tile_bytes(decltype(hd)::value); });
}

void launch_attention_half(const Queue& q, const HalfAttendArgs& h) {
  const KvLayer& c = h.of.cache;
  int blocks = 0;
  for (int i = 0; i < h.sequences; ++i)
    blocks = h.sequence[i].blocks > blocks ? h.sequence[i].blocks : blocks;
  const int ratio = h.of.heads / c.kv_heads, parts = (kBlock * ratio + kRows - 1) / kRows;
  with_dims(c.head_dim, [&](auto hd) {
    constexpr int kDims = decltype(hd)::value;
    launch(q, "keys_values_half", keys_values_half<kDims>,
           dim3{static_cast<unsigned>(2 * blocks), static_cast<unsigned>(c.kv_heads),
                static_cast<unsigned>(h.sequences)},
           kMakers, 0, h);
    launch(q, "attend_half", attend_half<kDims>,
           dim3{static_cast<unsigned>(h.groups * parts * c.kv_heads)}, kThreads,
           shared_bytes(kDims), h);
  });
}

}  // namespace nibble::NIBBLE_CUDA_NS
