// Rows of x, made by one block: loaded (with residual + delta and RMSNorm, or a head's gated
// RMSNorm), then rounded to fixed point. h is the block's shared memory for `count` rows [count, K]
// at once; sums are added in the CPU's order.
#pragma once
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {

// The part of K that this block writes to residual_out and normed: of every row prepared.
struct Slice {
  int begin, end;
};

// Sums of squares of `runs` runs of `width` values, run i at x + i * width, added as the CPU's
// sum_squares() does (simd/rowwise.inl): f(i, sum) on every lane of a warp. All threads call it.
template <class F>
__device__ __forceinline__ void squares(const float* x, int runs, int width, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
            warps = static_cast<int>(blockDim.x) / 32;
  for (int i = warp; i < runs; i += warps) {
    const float* p = x + static_cast<std::int64_t>(i) * width;
    float mine = 0;  // of block lane % 16
    for (int b = 0; b < 16; ++b) {
      float s = 0, t = 0;
      for (int c = b * kStage + lane; c < width; c += 16 * kStage) {
        s = fmaf(p[c], p[c], s);
        if (c + 32 < width) t = fmaf(p[c + 32], p[c + 32], t);
      }
      s = add_lanes(s + t);
      if (lane % 16 == b) mine = s;
    }
    f(i, add_sixteen(mine));
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

// A row's words, and in which order (Fixed).
struct Words {
  char* at;
  bool straight = false;
};

// What turns values of at most `largest` into fixed point and back: as IEEE divides, the usual
// range by a quotient's remainder (Markstein: right where the reciprocal is) and no branch.
__device__ __forceinline__ void scale_of(float largest, int int8, float& scale, float& inverse) {
  const float top = int8 ? 127.0f : 32512.0f, by_top = int8 ? 1.0f / 127.0f : 1.0f / 32512.0f;
  float r = reciprocal_near(largest);
  r = fmaf(r, fmaf(-largest, r, 1.0f), r);
  scale = largest * by_top, inverse = top * r;
  scale = fmaf(by_top, fmaf(-top, scale, largest), scale);
  inverse = fmaf(r, fmaf(-largest, inverse, top), inverse);
  if (!(largest < 1e30f)) scale = largest / top, inverse = top / largest;
  if (largest < 1e-30f) scale = inverse = 0.0f;  // 1 / largest would overflow
}

// `count` stages of a row by one warp: stage first + step i has this lane's columns `lane` (x) and
// `lane + 32` (y) of 64 in v[i] -> 128 bytes and their meta. A lane divides for a stage.
// Sums: of each chunk too, which only other kernels than gemv ask for.
template <int N, bool Sums>
__device__ __forceinline__ void round_stages(float2 (&v)[N], int count, int first, int step,
                                             int int8, Words to, RowMeta* meta) {
  const int lane = static_cast<int>(thread_again() % 32);
  float largest = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    // As bits, so that NaN and Inf win and reach the scale.
    const int x = float_bits(v[i].x) & 0x7fffffff, y = float_bits(v[i].y) & 0x7fffffff;
    const int m = warp_max(x > y ? x : y);
    if (lane == i) largest = bits_float(m);
  }
  float scale, inverse;
  scale_of(largest, int8, scale, inverse);
  // Finite values stay in bounds; where one is not, NaN becomes the lower one, as on the CPU.
  if (first_lane(!(largest < 3e38f)) < 32) {
    const float top = int8 ? 127.0f : 32512.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float inv = shuffle(inverse, i);
      v[i] = {cut(v[i].x * inv, top), cut(v[i].y * inv, top)};
    }
    inverse = 1;
  }
  // q = 256 high + low, both signed bytes; int8: high is 0. In the lowest bits of q + kBig.
  constexpr float kBig = 12582912.0f;  // 1.5 * 2^23: the sum is rounded to an integer
  constexpr unsigned kBias = 0x4b400000;
  const int second = to.straight ? 32 : 8;
  char* const words =
      to.at + first * 128 + (to.straight ? lane : (lane & 12) * 4 + (lane & 16) / 4 + (lane & 3));
  int sum0 = 0, sum1 = 0;  // of stage `lane`
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float inv = shuffle(inverse, i);
    const auto q0 = static_cast<unsigned>(float_bits(v[i].x * inv + kBig)),
               q1 = static_cast<unsigned>(float_bits(v[i].y * inv + kBig));
    const int all0 = warp_add(static_cast<int>(Sums ? q0 - kBias : q0 + q1 - 2 * kBias)),
              all1 = Sums ? warp_add(static_cast<int>(q1 - kBias)) : 0;
    if (lane == i) sum0 = all0, sum1 = all1;
    if (i < count) {
      char* at = words + i * step * 128;
      at[0] = static_cast<char>((q0 + 128) >> 8), at[second] = static_cast<char>((q1 + 128) >> 8);
      at[64] = static_cast<char>(q0), at[64 + second] = static_cast<char>(q1);
    }
  }
  if (lane < count) {
    RowMeta& m = meta[first + lane * step];
    m.scale = scale, m.minus8 = -8 * (sum0 + sum1);
    if constexpr (Sums) m.sum[0] = sum0, m.sum[1] = sum1;
  }
}

// x [count, K] -> rows `at` .. of out. A warp takes one stage of one row at a time.
__device__ __forceinline__ void round_rows(const float* x, int count, int k, int int8,
                                           const Stage* plan, int stages, const Fixed& out,
                                           int at) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
            warps = static_cast<int>(blockDim.x) / 32;
  for (int task = warp; task < count * stages; task += warps) {
    const int r = task / stages, s = task % stages;
    const int first = plan[s].column, last = first + 32 * plan[s].chunks, end = last < k ? last : k;
    const int c = first + lane;
    const float* row = x + static_cast<std::int64_t>(r) * k;
    const std::int64_t cell = static_cast<std::int64_t>(at + r) * stages + s;
    float2 v[] = {{c < end ? row[c] : 0.0f, c + 32 < end ? row[c + 32] : 0.0f}};
    round_stages<1, true>(v, 1, 0, 0, int8,
                          {static_cast<char*>(out.words) + cell * 128, out.straight},
                          out.meta + cell);
  }
}

}  // namespace nibble::NIBBLE_CUDA_NS
