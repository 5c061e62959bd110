// Rows of x for gemm_half.cu, a block a row: loaded as for every other kernel (with residual +
// delta and RMSNorm, or the gated norm of heads; rows.cuh), then halves under one power of two, so
// that the row's largest magnitude lies in [2^14, 2^15). Bytes: a row in, half of it out.
#include "backend/cuda/rows.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

__global__ void __launch_bounds__(kRowThreads)
    prepare_half(const __grid_constant__ Source s, int stages, Fixed to) {
  start_next(), await_last();
  const int row = static_cast<int>(blockIdx.x), tid = static_cast<int>(threadIdx.x),
            warp = tid / 32;
  float* const h = reinterpret_cast<float*>(shared_memory());  // [k]
  float* const scratch = h + s.k;                              // [runs of a norm, or warps]
  load_rows(s, row, 1, h, scratch, {0, s.k});
  int largest = 0;  // as bits, so that NaN and Inf win
  for (int c = tid; c < s.k; c += kRowThreads) {
    const int bits = float_bits(h[c]) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  largest = warp_max(largest);
  block_sync();
  if (tid % 32 == 0) scratch[warp] = bits_float(largest);
  block_sync();
  for (int i = 0; i < kRowWarps; ++i) {
    const int bits = float_bits(scratch[i]);
    largest = bits > largest ? bits : largest;
  }
  // 2^(14 - e) and its inverse, both normal; a row of Inf or NaN stays what it is.
  int e = (largest >> 23) - 127;
  e = e > 127 ? 14 : e < -100 ? -100 : e;
  const float up = bits_float((14 - e + 127) << 23);
  if (tid == 0) to.row_scale[row] = bits_float((e - 14 + 127) << 23);
  uint4* const words = static_cast<uint4*>(to.words) + static_cast<std::int64_t>(row) * stages * 8;
  for (int i = tid; i < stages * 8; i += kRowThreads) {  // even or odd columns of 16
    const int first = i / 2 * 16 + i % 2;
    std::uint32_t pair[4];
    for (int j = 0; j < 4; ++j) {
      const auto half = [&](int c) -> std::uint32_t { return c < s.k ? to_half(h[c] * up) : 0; };
      pair[j] = half(first + 4 * j) | half(first + 4 * j + 2) << 16;
    }
    words[i] = make_uint4(pair[0], pair[1], pair[2], pair[3]);
  }
}

}  // namespace

void launch_prepare_half(const Queue& q, const Source& s, int m, int stages, const Fixed& to) {
  const int runs = s.kind == Source::GatedNorm ? s.k / s.dim : 1;
  launch(q, "prepare_half", prepare_half, dim3{static_cast<unsigned>(m)}, kRowThreads,
         static_cast<std::size_t>(s.k + (runs > kRowWarps ? runs : kRowWarps)) * sizeof(float), s,
         stages, to);
}

}  // namespace nibble::NIBBLE_CUDA_NS
