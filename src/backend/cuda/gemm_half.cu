// y = W x for prompts, on Hopper's matrix instructions in fp16: W symmetric INT4, dequantised in
// registers ((code - 8) * scale, rounded once), x in halves under one power of two a row, sums in
// fp32. K is one chain of instructions of 16 columns, whatever the tile: no bit of a row depends on
// how many there are. (gemm_wide.cu is the same in exact integers, with decode's bits.)
//
// A block of 16 warps takes 16 tiles of W (with SwiGLU: 8 of gate and the same of up), a tile a
// warp, and 8 Octets rows of x, of a mixture the pairs of one expert. Four warps multiply 64 rows
// of W with all rows of x: so much of x serves 256 rows of W that the second cache keeps up, and
// while some warps make halves of codes the matrix units have the others' products. Stages of 64
// columns come through buffers in shared memory (cp.async), four between barriers: of x 128 bytes a
// row, swizzled; of W 512 bytes of codes a tile and its scales.
//
// x (Fixed::words) [row][stage] 64 halves: of every 16 columns the even ones, then the odd ones,
// which is how a byte pair of codes becomes two halves by one AND (kernels.h, Matrix).
// Bytes of a block: W once; x once for 256 rows of W. Aliasing: ops/linear.h.
#include "backend/cuda/gemm.cuh"
#include "backend/cuda/warpgroup.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps, kRowBytes = 128, kSlotBytes = 512 + 64,
              kAlign = 1024;
constexpr int turn_of(int octets) { return octets > 16 ? 3 : 4; }  // stages between barriers

// Shared memory: inputs [buffers][rows], where the swizzle begins anew; slots [buffers][kWarps];
// scales of x [rows].
constexpr std::size_t shared_bytes(int octets) {
  const int rows = 8 * octets, buffers = 2 * turn_of(octets);
  return static_cast<std::size_t>(kAlign + buffers * (rows * kRowBytes + kWarps * kSlotBytes) +
                                  rows * 4);
}

// Codes of columns 4 t + j of 16, low or high nibbles, of bytes 0 and 2 (j even, or of w >> 8 odd).
__device__ __forceinline__ std::uint32_t low_halves(std::uint32_t w, std::uint32_t scale) {
  constexpr std::uint32_t kOne = 0x3c003c00, kLess = 0xe408e408;  // -1032
  return half2_mul(half2_fma((w & 0x000f000fu) | 0x64006400u, kOne, kLess), scale);
}
__device__ __forceinline__ std::uint32_t high_halves(std::uint32_t w, std::uint32_t scale) {
  constexpr std::uint32_t kSixteenth = 0x2c002c00, kLess = 0xd480d480;  // -72
  return half2_mul(half2_fma((w & 0x00f000f0u) | 0x64006400u, kSixteenth, kLess), scale);
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Octets: most rows of x, in eights. Groups32: a scale for 32 columns.
template <int Octets, bool Groups32>
__global__ void __launch_bounds__(kThreads, 1) gemm_half(const __grid_constant__ MultiplyArgs a) {
#ifdef NIBBLE_HAS_WARPGROUPS
  start_next(), await_last();
  if (!has_rows(a)) return;
  constexpr int kRows = 8 * Octets, kInputBytes = kRows * kRowBytes, kTurn = turn_of(Octets),
                kBuffers = 2 * kTurn;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32, g = lane / 4,
            t = lane % 4, stages = a.out[0].w.stages;
  const bool swiglu = a.finish == Finish::SwiGlu;
  const BlockRows rows(a, kRows);
  const int block = static_cast<int>(blockIdx.y);
  const Where tile =
      swiglu ? where_pair(a, block * (kWarps / 2) + warp % (kWarps / 2), warp / (kWarps / 2))
             : where(a, block * kWarps + warp);
  const TileBytes bytes(a, tile, rows.matrix);

  char* input = shared_memory();
  input += (kAlign - reinterpret_cast<std::uintptr_t>(input) % kAlign) % kAlign;
  char* const slots = input + kBuffers * kInputBytes + warp * kSlotBytes;
  float* const x_scale =
      reinterpret_cast<float*>(input + kBuffers * (kInputBytes + kWarps * kSlotBytes));
  for (int r = tid; r < kRows; r += kThreads) x_scale[r] = a.fixed.row_scale[rows.x(r)];

  // This thread's parts of a stage of x: 16 bytes of every 64th row. Of rows that are not there
  // buffers have anything: their products are nobody's.
  constexpr int kParts = (kRows + 63) / 64;
  const int row = tid / 8, input_at = row * kRowBytes + (tid % 8 ^ row % 8) * 16;
  const char* const words =
      static_cast<const char*>(a.fixed.words) + rows.x(row) * stages * kRowBytes + tid % 8 * 16;
  const auto bring = [&](int first) {
#pragma unroll
    for (int i = 0; i < kTurn; ++i) {
      const int s = first + i, buffer = s % kBuffers;
      if (s >= stages) break;
#pragma unroll
      for (int j = 0; j < kParts; ++j)
        if (row + 64 * j < rows.rows && row + 64 * j < kRows)
          copy_async16(input + buffer * kInputBytes + 64 * j * kRowBytes + input_at,
                       words + (64 * j * stages + s) * kRowBytes);
      char* slot = slots + buffer * (kWarps * kSlotBytes) + lane * 16;
      copy_async16(slot, bytes.codes + static_cast<std::int64_t>(s) * 512);
      if (lane < (Groups32 ? 4 : 2))
        copy_async16(slot + 512,
                     bytes.scales + (Groups32 ? 2 * s : s >> a.out[0].w.group_shift) * 32);
    }
    copy_async_commit();
  };

  const auto walk = [&](auto octets) {
    constexpr int kOctets = decltype(octets)::value, kValues = 4 * kOctets;  // value: 4 o + 2 h + e
    float sums[kValues] = {};
    bring(0);
#pragma unroll 1
    for (int first = 0; first < stages; first += kTurn) {
      copy_async_wait<0>();
      show_to_warpgroups();
      block_sync();  // these stages are there for all, and nobody reads the last ones
      bring(first + kTurn);
#pragma unroll 1
      for (int s = first; s < stages && s < first + kTurn; ++s) {
        const int buffer = s % kBuffers;
        const char *x = input + buffer * kInputBytes,
                   *slot = slots + buffer * (kWarps * kSlotBytes);
        const uint4 v = *reinterpret_cast<const uint4*>(slot + lane * 16);
        const std::uint32_t w[4] = {v.x, v.y, v.z, v.w};
        std::uint32_t of[4][4];  // 16 columns; fragment
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const std::uint32_t both =
              *reinterpret_cast<const std::uint32_t*>(slot + 512 + (Groups32 ? 32 * c : 0) + 4 * g);
#pragma unroll
          for (int h = 0; h < 2; ++h) {  // rows g and g + 8
            const std::uint32_t scale = (both >> 16 * h & 0xffffu) * 0x10001u, u = w[2 * c + h];
            of[2 * c][h] = low_halves(u, scale), of[2 * c][2 + h] = low_halves(u >> 8, scale);
            of[2 * c + 1][h] = high_halves(u, scale);
            of[2 * c + 1][2 + h] = high_halves(u >> 8, scale);
          }
        }
        warpgroup_begin();
#pragma unroll
        for (int i = 0; i < 4; ++i)
          warpgroup_mma_half<kOctets>(sums, of[i][0], of[i][1], of[i][2], of[i][3], x + 32 * i);
        warpgroup_end(sums);
      }
    }

    const auto each = [&](auto&& f) {  // of the thread's sums that exist
      if (tile.o == nullptr) return;
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const int r = i / 4 * 8 + 2 * t + i % 2, n = tile.tile * kTile + g + i / 2 % 2 * 8;
        if (r >= rows.rows || n >= tile.o->w.n) continue;
        const float y = sums[i] * x_scale[r];
        f(i, rows.y(r), n, tile.o->bias != nullptr ? y + tile.o->bias[n] : y);
      }
    };
    if (!swiglu)
      return each([&](int, int y, int n, float v) {
        tile.o->y[static_cast<std::int64_t>(y) * tile.o->ldy + n] = v;
      });
    // Half of the warps have gate's, the others up's, which go through shared memory.
    float* const up = reinterpret_cast<float*>(input) + tid % (kThreads / 2);
    block_sync();
    if (warp >= kWarps / 2) each([&](int i, int, int, float v) { up[i * (kThreads / 2)] = v; });
    block_sync();
    if (warp < kWarps / 2)
      each([&](int i, int y, int n, float v) {
        tile.o->y[static_cast<std::int64_t>(y) * tile.o->ldy + n] =
            silu(v) * up[i * (kThreads / 2)];
      });
  };
  if constexpr (Octets > 8) {
    walk(Count<Octets>{});
  } else {
    if (rows.rows <= 16)
      walk(Count<2>{});
    else if (rows.rows <= 32)
      walk(Count<4>{});
    else
      walk(Count<8>{});
  }
#endif
}

using Kernel = void (*)(MultiplyArgs);
template <int Octets>
Kernel kernel_of(const Matrix& w) {
  return w.max_units == 2 ? gemm_half<Octets, true> : gemm_half<Octets, false>;
}

}  // namespace

bool can_gemm_half(const MultiplyArgs& a) {
  const Matrix& first = a.out[0].w;
  for (int i = 0; i < a.outputs; ++i) {
    const Matrix& w = a.out[i].w;
    if (w.type != kInt4 || w.scale_bytes != 2 || !w.regular || !w.fits_half) return false;
    if (w.max_units == 1 ? w.group_shift < 0 : w.groups != 2 * w.stages) return false;
    if (w.groups != first.groups) return false;
  }
  return true;
}

void launch_gemm_half(const Queue& q, MultiplyArgs a) {
  const Matrix& w = a.out[0].w;
  const bool swiglu = a.finish == Finish::SwiGlu;
  int tiles = 0;
  for (int i = 0; i < (swiglu ? 1 : a.outputs); ++i) tiles += a.out[i].w.tiles;
  a.jobs = tiles;
  const int each = swiglu ? kWarps / 2 : kWarps, y = (tiles + each - 1) / each;
  // So many rows a block that the last blocks leave few multiprocessors idle.
  const auto cost = [&](int octets) {
    const int blocks = (a.m + 8 * octets - 1) / (8 * octets) * y;
    return (blocks + q.multiprocessors - 1) / q.multiprocessors * (octets + 1);
  };
  const bool grouped = a.groups != nullptr;
  const int octets = grouped || a.m <= 64 ? 8 : cost(20) < cost(16) ? 20 : 16;
  const Kernel kernel = octets == 8    ? kernel_of<8>(w)
                        : octets == 16 ? kernel_of<16>(w)
                                       : kernel_of<20>(w);
  const int x = grouped ? a.max_tasks : (a.m + 8 * octets - 1) / (8 * octets);
  launch(q, "gemm_half", kernel, dim3{static_cast<unsigned>(x), static_cast<unsigned>(y)}, kThreads,
         shared_bytes(octets), a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
