// What one stage of a tile adds to the sums of its 16 rows (multiply.cu says which pairs).
#pragma once
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {

// The block's rows of x: a run of them, or those of a task.
struct Rows {
  int count, first;
  const int* list;  // or null
  __device__ __forceinline__ int at(int i) const { return list != nullptr ? list[i] : first + i; }
};

// Of one lane, in fixed point: B's column 8 o + lane / 4 (limb, row of x) and the rows 4 o + lane %
// 4 whose sums it holds; null where there is no such row.
template <int Octets>
struct LaneInput {
  const uint4* words[Octets];   // + 8 * stage
  const RowMeta* meta[Octets];  // + stage
  __device__ __forceinline__ LaneInput(const Fixed& x, const Rows& rows, int stages) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int o = 0; o < Octets; ++o) {
      const int column = 8 * o + g, m = 4 * o + t;
      words[o] = nullptr, meta[o] = nullptr;
      if (column / 2 < rows.count)
        words[o] = static_cast<const uint4*>(x.words) +
                   static_cast<std::int64_t>(rows.at(column / 2)) * stages * 8 + column % 2 * 4 + t;
      if (m < rows.count) meta[o] = x.meta + static_cast<std::int64_t>(rows.at(m)) * stages;
    }
  }
};

// first: 0 or, of offsets, kTile.
__device__ __forceinline__ float scale_at(const Matrix& w, const char* record, int row,
                                          int first = 0) {
  const int i = first + scale_place(row);
  return w.scale_bytes == 2 ? from_half(reinterpret_cast<const std::uint16_t*>(record)[i])
                            : reinterpret_cast<const float*>(record)[i];
}

// The pairs of a row of W and of x, one entry 16 rows(x) pairs after the other.
struct Pairs {
  float2* at;
  int pitch;
  __device__ void put(int entry, float a, float b) const { at[entry * pitch] = make_float2(a, b); }
};
// Adds nothing, to minus zero either.
__device__ __forceinline__ void put_rest(const Pairs& p, int used, int entries) {
  for (int e = used; e < entries; ++e) p.put(e, -0.0f, 1.0f);
}

// One stage in fixed point. slot: the stage's codes, then its records. pairs: [entry][x][16].
template <int Octets>
__device__ __forceinline__ void fixed_stage(const Matrix& w, const char* slot, const Stage& p,
                                            int stage, const LaneInput<Octets>& x, int rows,
                                            float2* pairs) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  int sum[2][Octets][4] = {};
  uint4 b[Octets];
#pragma unroll
  for (int o = 0; o < Octets; ++o) {
    b[o] = make_uint4(0, 0, 0, 0);
    if (x.words[o] != nullptr) b[o] = x.words[o][8 * stage];
  }
  const uint4* codes = reinterpret_cast<const uint4*>(slot);
  if (w.type == kInt8) {
    const uint4 first = codes[lane], second = codes[32 + lane];
#pragma unroll
    for (int o = 0; o < Octets; ++o) {
      mma_s8s8(sum[0][o], first.x, first.y, first.z, first.w, b[o].x, b[o].y);
      if (p.units == 1)
        mma_s8s8(sum[0][o], second.x, second.y, second.z, second.w, b[o].z, b[o].w);
      else
        mma_s8s8(sum[1][o], second.x, second.y, second.z, second.w, b[o].z, b[o].w);
    }
  } else {
    constexpr std::uint32_t kLow = 0x0f0f0f0f;
    const uint4 v = codes[lane];
    const std::uint32_t a[8] = {v.x & kLow, v.y & kLow, v.x >> 4 & kLow, v.y >> 4 & kLow,
                                v.z & kLow, v.w & kLow, v.z >> 4 & kLow, v.w >> 4 & kLow};
#pragma unroll
    for (int o = 0; o < Octets; ++o) {
      mma_u8s8(sum[0][o], a[0], a[1], a[2], a[3], b[o].x, b[o].y);
      if (p.units == 1)
        mma_u8s8(sum[0][o], a[4], a[5], a[6], a[7], b[o].z, b[o].w);
      else
        mma_u8s8(sum[1][o], a[4], a[5], a[6], a[7], b[o].z, b[o].w);
    }
  }
  const int bias = w.type == kInt4 ? 8 : 0;
  const char* record = slot + w.stage_bytes;
#pragma unroll
  for (int o = 0; o < Octets; ++o) {
    if (x.meta[o] == nullptr) continue;
    const int m = 4 * o + t;
    const RowMeta meta = x.meta[o][stage];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = g + 8 * half;
      const Pairs out{pairs + m * kTile + row, rows * kTile};
      int e = 0;
      for (int u = 0; u < p.units; ++u) {
        const int high = u == 0 ? sum[0][o][2 * half] : sum[1][o][2 * half],
                  low = u == 0 ? sum[0][o][2 * half + 1] : sum[1][o][2 * half + 1];
        const int q = p.units == 2 ? meta.sum[u] : meta.sum[0] + meta.sum[1];
        const char* r = record + u * w.record_bytes;
        out.put(e++, static_cast<float>(high * 256 + low - bias * q),
                scale_at(w, r, row) * meta.scale);
        if (w.type != kInt4Aff) continue;
        const float offset = scale_at(w, r, row, kTile);
        for (int c = u; c < (p.units == 2 ? u + 1 : p.chunks); ++c)
          out.put(e++, static_cast<float>(meta.sum[c]) * meta.scale, offset);
      }
      put_rest(out, e, w.entries);
    }
  }
}

// Columns [first, first + n) of a stage's row, in ascending order: f(column, value).
template <class F>
__device__ __forceinline__ void walk(const Matrix& w, const char* slot, int row, int first, int n,
                                     F&& f) {
  for (int j = first; j < first + n; ++j) {
    float v;
    if (w.type == kF32) {
      v = reinterpret_cast<const float*>(slot)[(j / 4 * kTile + row) * 4 + j % 4];
    } else if (w.type >= kF16) {
      const std::uint16_t bits =
          reinterpret_cast<const std::uint16_t*>(slot)[(j / 8 * kTile + row) * 8 + j % 8];
      v = w.type == kF16 ? from_half(bits) : from_bf16(bits);
    } else {
      const int chunk = j / 32, half = j / 16 % 2, lane = row % 8 * 4 + j % 16 / 4, byte = j % 4;
      if (w.type == kInt8) {
        v = static_cast<float>(static_cast<std::int8_t>(
            slot[chunk * 512 + lane * 16 + (half * 2 + row / 8) * 4 + byte]));
      } else {
        const int both =
            static_cast<std::uint8_t>(slot[lane * 16 + (chunk * 2 + row / 8) * 4 + byte]);
        v = static_cast<float>((both >> 4 * half & 15) - (w.type == kInt4 ? 8 : 0));
      }
    }
    f(j, v);
  }
}

// Sum of a chunk's x (n of its columns exist), in the CPU's order.
__device__ inline float chunk_sum(const float* x, int n) {
  float t[16];
  for (int i = 0; i < 16; ++i) t[i] = (i < n ? x[i] : 0.0f) + (i + 16 < n ? x[i + 16] : 0.0f);
  for (int h = 8; h > 0; h /= 2)
    for (int i = 0; i < h; ++i) t[i] = t[i] + t[i + h];
  return t[0];
}

// One stage in fp32: lane = row of W, and which of the rows of x (even, odd).
__device__ __forceinline__ void real_stage(const Matrix& w, const char* slot, const Stage& p,
                                           const float* x, const Rows& rows, float2* pairs) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane % 16;
  const char* record = slot + w.stage_bytes;
  for (int m = lane / 16; m < rows.count; m += 2) {
    const float* in = x + static_cast<std::int64_t>(rows.at(m)) * w.k + p.column;
    const Pairs out{pairs + m * kTile + row, rows.count * kTile};
    int e = 0;
    for (int u = 0; u < p.units; ++u) {
      const int first = 32 * u, n = p.units == 2 ? 32 : 32 * p.chunks;
      const int exist = w.k - p.column - first < n ? w.k - p.column - first : n;
      float s = 0;
      walk(w, slot, row, first, exist, [&](int j, float v) { s = fmaf(v, in[j], s); });
      const char* r = record + u * w.record_bytes;
      out.put(e++, s, w.type >= kF16 ? 1.0f : scale_at(w, r, row));
      if (w.type != kInt4Aff) continue;
      const float offset = scale_at(w, r, row, kTile);
      for (int c = 0; c < n / 32; ++c)
        out.put(e++, chunk_sum(in + first + 32 * c, exist - 32 * c), offset);
    }
    put_rest(out, e, w.entries);
  }
}

}  // namespace nibble::NIBBLE_CUDA_NS
