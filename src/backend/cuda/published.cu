// The published fused kernel, kept as it fails: every block reads residual and delta and makes the
// norm for itself, and block 0 writes the sum back into the residual that the others still read.
// A fixture of `nibble verify --explain`; nothing else launches it.
//
// And a kernel that holds multiprocessors, so that others' blocks start late and in other orders.
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kGroupRows = 16;

__global__ void __launch_bounds__(kThreads) published(PublishedArgs a) {
  start_next(), await_last();
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32,
            block = static_cast<int>(blockIdx.x);
  float* h = reinterpret_cast<float*>(shared_memory());
  float* sums = h + a.k;
  float sum = 0;
  for (int c = tid; c < a.k; c += kThreads) {
    const float v = a.residual[c] + a.delta[c];
    h[c] = v, sum = fmaf(v, v, sum);
  }
  sum = add_lanes(sum);
  if (lane == 0) sums[warp] = sum;
  block_sync();
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum = sum + sums[w];
  const float inv = 1.0f / sqrtf(sum / static_cast<float>(a.k) + a.eps);
  if (block == 0)
    for (int c = tid; c < a.k; c += kThreads) a.residual_out[c] = h[c];
  for (int r = warp; r < kGroupRows; r += kWarps) {
    const int n = block * kGroupRows + r;
    if (n >= a.n) break;
    const std::uint8_t* codes = a.codes + static_cast<std::int64_t>(n) * (a.k / 2);
    const float* scales = a.scales + static_cast<std::int64_t>(n) * (a.k / a.group);
    float y = 0;
    for (int c = 2 * lane; c < a.k; c += 64) {
      const int both = codes[c / 2];
      const float scale = scales[c / a.group];
      y = fmaf(static_cast<float>((both & 15) - 8) * scale, h[c] * inv, y);
      y = fmaf(static_cast<float>((both >> 4) - 8) * scale, h[c + 1] * inv, y);
    }
    y = add_lanes(y);
    if (lane == 0) a.y[n] = y;
  }
}

__global__ void occupy(int cycles) {
  start_next(), await_last();
  spin(cycles);
}

}  // namespace

void launch_published(const Queue& q, const PublishedArgs& a) {
  launch(q, "published", published,
         dim3{static_cast<unsigned>((a.n + kGroupRows - 1) / kGroupRows)}, kThreads,
         static_cast<std::size_t>(a.k + kWarps) * sizeof(float), a);
}
void launch_occupy(const Queue& q, int blocks, std::size_t shared, int cycles) {
  launch(q, "occupy", occupy, dim3{static_cast<unsigned>(blocks)}, 32, shared, cycles);
}

}  // namespace nibble::NIBBLE_CUDA_NS
