// Rows of x, made by one block: loaded (with residual + delta and RMSNorm, or a head's gated
// RMSNorm), then rounded to fixed point. h is the block's shared memory for `count` rows [count, K]
// at once; the sums run as on the CPU, in 16 lanes over ascending columns and then as a tree.
#pragma once
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {

// The part of K that this block writes to residual_out and normed: of every row prepared.
struct Slice {
  int begin, end;
};

// Sums of squares of `groups` runs of `width` values, run i at x + i * width -> out[i] in lanes; by
// sixteen threads a run. All threads of the block call it; f(i, sum) runs on one thread.
template <class F>
__device__ __forceinline__ void squares(const float* x, int groups, int width, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % 16, at = static_cast<int>(threadIdx.x) / 16,
            step = static_cast<int>(blockDim.x) / 16;
  for (int first = 0; first < groups; first += step) {  // whole warps stay together
    const int i = first + at;
    float sum = 0;
    if (i < groups) {
      const float* p = x + static_cast<std::int64_t>(i) * width;
#pragma unroll 8
      for (int c = lane; c < width; c += 16) sum = fmaf(p[c], p[c], sum);
    }
    sum = add_sixteen(sum);
    if (i < groups && lane == 0) f(i, sum);
  }
}

// h [count, K] = rows first .. first + count of the source. inv: scratch of max(count, heads)
// floats in shared memory. Ends with a barrier.
__device__ __forceinline__ void load_rows(const Source& s, int first, int count, float* h,
                                          float* inv, Slice slice) {
  const int k = s.k, n = static_cast<int>(blockDim.x), tid = static_cast<int>(threadIdx.x);
  const std::int64_t base = static_cast<std::int64_t>(first) * k;
  const auto mine = [&](int c) { return c >= slice.begin && c < slice.end; };
  for (int r = 0; r < count; ++r) {
    const std::int64_t row = base + static_cast<std::int64_t>(r) * k;
    const bool add = s.kind == Source::Norm && s.other != nullptr;
#pragma unroll 4
    for (int c = tid; c < k; c += n) {
      float v = s.x[row + c];
      if (add) v = v + s.other[row + c];
      h[r * k + c] = v;
      if (s.residual_out != nullptr && mine(c)) s.residual_out[row + c] = v;
    }
  }
  block_sync();
  if (s.kind == Source::Norm) {
    squares(h, count, k,
            [&](int i, float sum) { inv[i] = 1.0f / sqrtf(sum / static_cast<float>(k) + s.eps); });
    block_sync();
    for (int r = 0; r < count; ++r)
      for (int c = tid; c < k; c += n) {
        const float u = h[r * k + c] * inv[r] * (s.weight[c] + s.offset);
        h[r * k + c] = u;
        if (s.normed != nullptr && mine(c))
          s.normed[base + static_cast<std::int64_t>(r) * k + c] = u;
      }
    block_sync();
  } else if (s.kind == Source::GatedNorm) {
    for (int r = 0; r < count; ++r) {
      squares(h + r * k, k / s.dim, s.dim, [&](int i, float sum) {
        inv[i] = 1.0f / sqrtf(sum / static_cast<float>(s.dim) + s.eps);
      });
      block_sync();
      for (int c = tid; c < k; c += n) {
        const float z = s.other[base + static_cast<std::int64_t>(r) * k + c];
        h[r * k + c] = h[r * k + c] * inv[c / s.dim] * s.weight[c % s.dim] * silu(z);
      }
      block_sync();
    }
  }
}

// x [count, K] -> rows `at` .. of out. A warp takes one stage of one row at a time.
__device__ __forceinline__ void round_rows(const float* x, int count, int k, int int8,
                                           const Stage* plan, int stages, const Fixed& out,
                                           int at) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
            warps = static_cast<int>(blockDim.x) / 32;
  const float top = int8 ? 127.0f : 32512.0f;
  for (int task = warp; task < count * stages; task += warps) {
    const int r = task / stages, s = task % stages;
    const int first = plan[s].column, last = first + 32 * plan[s].chunks, end = last < k ? last : k;
    const int c = first + 2 * lane;
    const float* row = x + static_cast<std::int64_t>(r) * k;
    const float v0 = c < end ? row[c] : 0.0f, v1 = c + 1 < end ? row[c + 1] : 0.0f;
    // As bits, so that NaN and Inf win and reach the scale.
    const int b0 = float_bits(v0) & 0x7fffffff, b1 = float_bits(v1) & 0x7fffffff;
    const float largest = bits_float(warp_max(b0 > b1 ? b0 : b1));
    const bool tiny = largest < 1e-30f;  // 1 / largest would overflow
    const float scale = tiny ? 0.0f : largest / top, inv = tiny ? 0.0f : top / largest;
    const int q0 = round_int(cut(v0 * inv, top)), q1 = round_int(cut(v1 * inv, top));
    const int h0 = int8 ? 0 : (q0 + 128) >> 8, h1 = int8 ? 0 : (q1 + 128) >> 8;
    const int l0 = q0 - h0 * 256, l1 = q1 - h1 * 256;
    const int sum0 = warp_add(lane < 16 ? q0 + q1 : 0), sum1 = warp_add(lane < 16 ? 0 : q0 + q1);
    const std::int64_t cell = static_cast<std::int64_t>(at + r) * stages + s;
    // Column 2 lane of 64: chunk, half of 16, then t and the byte.
    const int chunk = lane / 16, half = lane / 8 % 2, t = lane % 8 / 2, byte = lane % 2 * 2;
    char* word =
        static_cast<char*>(out.words) + cell * 128 + t * 16 + (chunk * 2 + half) * 4 + byte;
    const auto pair = [](int a, int b) {
      return static_cast<std::uint16_t>((a & 255) | (b & 255) << 8);
    };
    *reinterpret_cast<std::uint16_t*>(word) = pair(h0, h1);
    *reinterpret_cast<std::uint16_t*>(word + 64) = pair(l0, l1);
    if (lane == 0) out.meta[cell] = {scale, {sum0, sum1}, 0};
  }
}

}  // namespace nibble::NIBBLE_CUDA_NS
