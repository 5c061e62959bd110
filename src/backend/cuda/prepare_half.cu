// Rows of x for gemm_half.cu, a block a row: as they are, under residual + delta and RMSNorm, or
// under the gated norm of heads; then halves under one power of two, so that the row's largest
// magnitude lies in [2^14, 2^15). A thread has 16 columns that follow each other, or some such
// runs, in registers; sums of squares are added by threads, in order. Other widths go through
// shared memory, as every other kernel's rows (prepare.cuh).
// Bytes: a row in, half of it out; under a norm also the residual, in and out.
#include "backend/cuda/rows.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kRun = 16, kMostRuns = 3;

// Halves of the columns first .. of a row (at: c < k), the even ones, then the odd ones.
template <class At>
__device__ __forceinline__ void write_run(uint4* words, float up, At&& at) {
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    std::uint32_t pair[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) pair[j] = to_halves(at(4 * j + odd) * up, at(4 * j + 2 + odd) * up);
    words[odd] = make_uint4(pair[0], pair[1], pair[2], pair[3]);
  }
}

// largest: bits of a row's largest magnitude. 2^(14 - e), and its inverse to `scale`, both normal;
// a row with Inf or NaN stays what it is.
__device__ __forceinline__ float scale_up(int largest, float* scale) {
  int e = (largest >> 23) - 127;
  e = e > 127 ? 14 : e < -100 ? -100 : e;
  if (threadIdx.x == 0) *scale = bits_float((e - 14 + 127) << 23);
  return bits_float((14 - e + 127) << 23);
}
__device__ __forceinline__ int magnitude(float x) { return float_bits(x) & 0x7fffffff; }

// What all warps of the block have, in all threads. scratch: a float a warp, used once.
template <class Join>
__device__ __forceinline__ float join_warps(float mine, float* scratch, Join&& join) {
  const int warps = static_cast<int>(blockDim.x) / 32;
  if (warps == 1) return mine;
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = mine;
  block_sync();
  float all = scratch[0];
  for (int i = 1; i < warps; ++i) all = join(all, scratch[i]);
  return all;
}

// Runs: of a thread, at most.
template <int Runs>
__global__ void __launch_bounds__(kRowThreads)
    prepare_half(const __grid_constant__ Source s, int stages, Fixed to) {
  start_next(), await_last();
  float* const scratch = reinterpret_cast<float*>(shared_memory());
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const std::int64_t row = blockIdx.x, at = row * s.k;
  float v[Runs][kRun];
  const auto each = [&](auto&& f) {  // run of this thread; its first column
#pragma unroll
    for (int i = 0; i < Runs; ++i)
      if (const int c = (tid + i * threads) * kRun; c < s.k) f(v[i], c);
  };
  const auto load = [&](const float* from, int c, float(&x)[kRun]) {
#pragma unroll
    for (int j = 0; j < kRun / 4; ++j) {
      const float4 q = reinterpret_cast<const float4*>(from + c)[j];
      x[4 * j] = q.x, x[4 * j + 1] = q.y, x[4 * j + 2] = q.z, x[4 * j + 3] = q.w;
    }
  };
  const auto store = [&](float* to_row, int c, const float(&x)[kRun]) {
#pragma unroll
    for (int j = 0; j < kRun / 4; ++j)
      reinterpret_cast<float4*>(to_row + c)[j] = {x[4 * j], x[4 * j + 1], x[4 * j + 2],
                                                  x[4 * j + 3]};
  };
  each([&](float(&x)[kRun], int c) { load(s.x + at, c, x); });
  if (s.kind == Source::Norm) {
    float sum = 0;
    each([&](float(&x)[kRun], int c) {
      float d[kRun];
      if (s.other != nullptr) {
        load(s.other + at, c, d);
#pragma unroll
        for (int j = 0; j < kRun; ++j) x[j] = x[j] + d[j];
      }
      if (s.residual_out != nullptr) store(s.residual_out + at, c, x);
#pragma unroll
      for (int j = 0; j < kRun; ++j) sum = fmaf(x[j], x[j], sum);
    });
    sum = join_warps(add_lanes(sum), scratch, [](float a, float b) { return a + b; });
    const float inv = 1.0f / sqrtf(sum / static_cast<float>(s.k) + s.eps);
    each([&](float(&x)[kRun], int c) {
      float w[kRun];
      load(s.weight, c, w);
#pragma unroll
      for (int j = 0; j < kRun; ++j) x[j] = x[j] * inv * (w[j] + s.offset);
      if (s.normed != nullptr) store(s.normed + at, c, x);
    });
  } else if (s.kind == Source::GatedNorm) {
#pragma unroll
    for (int i = 0; i < Runs; ++i) {  // by whole warps
      const int c = (tid + i * threads) * kRun;
      float sum = 0;
      if (c < s.k) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) sum = fmaf(v[i][j], v[i][j], sum);
      }
      for (int n = 1; n < s.dim / kRun; n *= 2) sum = sum + shuffle_xor(sum, n);
      if (c >= s.k) continue;
      const float inv = 1.0f / sqrtf(sum / static_cast<float>(s.dim) + s.eps);
      float w[kRun], z[kRun];
      load(s.weight, c % s.dim, w), load(s.other + at, c, z);
#pragma unroll
      for (int j = 0; j < kRun; ++j) v[i][j] = v[i][j] * inv * w[j] * silu_near(z[j]);
    }
  }
  int largest = 0;
  each([&](float(&x)[kRun], int) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) largest = magnitude(x[j]) > largest ? magnitude(x[j]) : largest;
  });
  largest = float_bits(
      join_warps(bits_float(warp_max(largest)), scratch + kRowWarps,
                 [](float a, float b) { return float_bits(a) > float_bits(b) ? a : b; }));
  const float up = scale_up(largest, to.row_scale + row);
  uint4* const words = static_cast<uint4*>(to.words) + row * stages * 8;
#pragma unroll
  for (int i = 0; i < Runs; ++i) {
    const int run = tid + i * threads;
    if (run >= stages * (kStage / kRun)) continue;
    const bool is = run * kRun < s.k;
    write_run(words + 2 * run, up, [&](int j) { return is ? v[i][j] : 0.0f; });
  }
}

// Of any width: the row waits in shared memory.
__global__ void __launch_bounds__(kRowThreads)
    prepare_half_any(const __grid_constant__ Source s, int stages, Fixed to) {
  start_next(), await_last();
  const int row = static_cast<int>(blockIdx.x), tid = static_cast<int>(threadIdx.x);
  float* const h = reinterpret_cast<float*>(shared_memory());  // [k]
  float* const scratch = h + s.k;                              // [runs of a norm, or warps]
  load_rows(s, row, 1, h, scratch, {0, s.k});
  int largest = 0;
  for (int c = tid; c < s.k; c += kRowThreads)
    largest = magnitude(h[c]) > largest ? magnitude(h[c]) : largest;
  largest = warp_max(largest);
  block_sync();  // nobody needs the norm's sums any more
  largest = float_bits(join_warps(bits_float(largest), scratch, [](float a, float b) {
    return float_bits(a) > float_bits(b) ? a : b;
  }));
  const float up = scale_up(largest, to.row_scale + row);
  uint4* const words = static_cast<uint4*>(to.words) + static_cast<std::int64_t>(row) * stages * 8;
  for (int run = tid; run < stages * (kStage / kRun); run += kRowThreads)
    write_run(words + 2 * run, up,
              [&](int j) { return run * kRun + j < s.k ? h[run * kRun + j] : 0.0f; });
}

}  // namespace

void launch_prepare_half(const Queue& q, const Source& s, int m, int stages, const Fixed& to) {
  const dim3 grid{static_cast<unsigned>(m)};
  const int runs = stages * (kStage / kRun), lanes = s.dim / kRun;
  const bool heads = s.dim % kRun == 0 && lanes > 0 && lanes <= 32 && (lanes & (lanes - 1)) == 0;
  if (s.k % kRun == 0 && runs <= kMostRuns * kRowThreads &&
      (s.kind != Source::GatedNorm || heads)) {
    const unsigned threads = runs < kRowThreads ? (runs + 31) / 32 * 32 : kRowThreads;
    const int each = (runs + kRowThreads - 1) / kRowThreads;
    return launch(q, "prepare_half",
                  each == 1   ? prepare_half<1>
                  : each == 2 ? prepare_half<2>
                              : prepare_half<kMostRuns>,
                  grid, threads, 2 * kRowWarps * sizeof(float), s, stages, to);
  }
  const int scratch = s.kind == Source::GatedNorm ? s.k / s.dim : 1;
  launch(
      q, "prepare_half_any", prepare_half_any, grid, kRowThreads,
      static_cast<std::size_t>(s.k + (scratch > kRowWarps ? scratch : kRowWarps)) * sizeof(float),
      s, stages, to);
}

}  // namespace nibble::NIBBLE_CUDA_NS
