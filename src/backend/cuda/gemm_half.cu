// y = W x for prompts, on Hopper's matrix instructions in fp16: W symmetric INT4, dequantised in
// registers ((code - 8) * scale, rounded once), x in halves under one power of two a row, sums in
// fp32. K is one chain of instructions of 16 columns, whatever the tile: no bit of a row depends on
// how many there are. (gemm_wide.cu is the same in exact integers, with decode's bits.)
//
// A job of a block of 16 warps is 16 tiles of W (with SwiGLU: 8 of gate and the same of up), a tile
// a warp, and 8 Octets rows of x, of a mixture the pairs of one expert. Four warps multiply 64 rows
// of W with all rows of x: so much of x serves 256 rows of W that the second cache keeps up, and
// while some warps make halves of codes the matrix units have the others' products. Stages of 64
// columns come through a ring of buffers in shared memory (cp.async): of x 128 bytes a row,
// swizzled; of W 512 bytes of codes a tile and its scales. No barrier of the block stands between
// stages: a warp says, a stage ahead, that its copies are there, and waits for the others' word
// of the stage at hand. A block stays for several jobs, and the next one's first stages come while
// the last one's sums are stored.
//
// x (Fixed::words) [row][stage] 64 halves: of every 16 columns the even ones, then the odd ones,
// which is how a byte pair of codes becomes two halves by one AND (kernels.h, Matrix).
// Bytes of a job: W once; x once for 256 rows of W. Aliasing: ops/linear.h.
#include "backend/cuda/gemm.cuh"
#include "backend/cuda/warpgroup.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps, kRowBytes = 128, kSlotBytes = 512 + 64,
              kAlign = 1024;
// Stages in the ring; how many ahead of the one at hand a warp asks for, and says that it has. All
// warps have read what is kSaid + 1 behind, which is where the next one goes.
constexpr int ring_of(int octets) { return octets > 16 ? 7 : 8; }
constexpr int kAhead = 3, kSaid = 1;

// Tiles (pairs of them, with SwiGLU) in jobs.
__host__ __device__ constexpr int blocks_of(int tiles, bool swiglu) {
  return swiglu ? (tiles + kWarps / 2 - 1) / (kWarps / 2) : (tiles + kWarps - 1) / kWarps;
}

// Shared memory: inputs [ring][rows], where the swizzle begins anew; slots [ring][kWarps]; scales
// of x [kKept][rows], of the job before, this one and the next; barriers [ring].
constexpr int kKept = 3;
constexpr std::size_t shared_bytes(int octets) {
  const int rows = 8 * octets, ring = ring_of(octets);
  return static_cast<std::size_t>(kAlign + ring * (rows * kRowBytes + kWarps * kSlotBytes + 8) +
                                  kKept * rows * 4);
}

// Codes of columns 4 t + j of 16, low or high nibbles, of bytes 0 and 2 (j even, or of w >> 8 odd).
__device__ __forceinline__ std::uint32_t low_halves(std::uint32_t w, std::uint32_t scale) {
  constexpr std::uint32_t kOne = 0x3c003c00, kLess = 0xe408e408;  // -1032
  return half2_mul(half2_fma(and_or(w, 0x000f000f, 0x64006400), kOne, kLess), scale);
}
__device__ __forceinline__ std::uint32_t high_halves(std::uint32_t w, std::uint32_t scale) {
  constexpr std::uint32_t kSixteenth = 0x2c002c00, kLess = 0xd480d480;  // -72
  return half2_mul(half2_fma(and_or(w, 0x00f000f0, 0x64006400), kSixteenth, kLess), scale);
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
  constexpr int kRows = 8 * Octets, kInputBytes = kRows * kRowBytes, kRing = ring_of(Octets);
  static_assert(kAhead < kRing - kSaid);
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32, g = lane / 4,
            t = lane % 4, stages = a.out[0].w.stages, step = static_cast<int>(gridDim.x);
  const bool swiglu = a.finish == Finish::SwiGlu, grouped = a.groups != nullptr;
  // Jobs: of blocks of rows, the same tiles of W one after the other; of groups, the same rows.
  const int row_blocks = grouped ? *a.task_count : (a.m + kRows - 1) / kRows,
            tile_blocks = blocks_of(a.jobs, swiglu), jobs = row_blocks * tile_blocks;
  int job = static_cast<int>(blockIdx.x);
  if (job >= jobs) return;
  const auto rows_of = [&](int j) {
    return BlockRows(a, grouped ? j / tile_blocks : j % row_blocks, kRows);
  };
  const auto tile_of = [&](int j) {
    const int block = grouped ? j % tile_blocks : j / row_blocks;
    return swiglu ? where_pair(a, block * (kWarps / 2) + warp % (kWarps / 2), warp / (kWarps / 2))
                  : where(a, block * kWarps + warp);
  };

  char* input = shared_memory();
  input += (kAlign - reinterpret_cast<std::uintptr_t>(input) % kAlign) % kAlign;
  char* const slots = input + kRing * kInputBytes + warp * kSlotBytes;
  float* const x_scales =
      reinterpret_cast<float*>(input + kRing * (kInputBytes + kWarps * kSlotBytes));

  char* const full = reinterpret_cast<char*>(x_scales + kKept * kRows);
  if (tid < kRing) barrier_init(full + 8 * tid, kWarps);
  block_sync();

  // This thread's parts of a stage of x: 16 bytes of every 64th row. Of rows that are not there
  // buffers have anything: their products are nobody's.
  constexpr int kParts = (kRows + 63) / 64;
  const int row = tid / 8, input_at = row * kRowBytes + (tid % 8 ^ row % 8) * 16;
  const char* words;  // of the stage that comes next
  const std::uint8_t *codes, *scales;
  int there;  // rows; none past the last job
  const auto turn_to = [&](int j) {
    there = 0;
    if (j >= jobs) return;
    const BlockRows rows = rows_of(j);
    const TileBytes bytes(a, tile_of(j), rows.matrix);
    codes = bytes.codes, scales = bytes.scales, there = rows.rows < kRows ? rows.rows : kRows;
    words =
        static_cast<const char*>(a.fixed.words) + rows.x(row) * stages * kRowBytes + tid % 8 * 16;
    float* const to = x_scales + j / step % kKept * kRows;
    if (lane == 0)  // who says for its warp what is there
      for (int r = warp; r < kRows; r += kWarps)
        copy_async<4>(to + r, a.fixed.row_scale + rows.x(r));
  };
  const int part = 64 * stages * kRowBytes, shift = Groups32 ? 0 : a.out[0].w.group_shift;
  const auto after = [](int at, int n) { return at + n < kRing ? at + n : at + n - kRing; };
  const auto bring = [&](int s, int to_slot) {
    if (there > 0) {
      char* const to = input + to_slot * kInputBytes + input_at;
      char* const slot = slots + to_slot * (kWarps * kSlotBytes) + lane * 16;
#pragma unroll
      for (int j = 0; j < kParts; ++j)
        if (row + 64 * j < there) copy_async16(to + 64 * j * kRowBytes, words + j * part);
      copy_async16(slot, codes);
      if (lane < (Groups32 ? 4 : 2))
        copy_async16(slot + 512, scales + (Groups32 ? 2 * s : s >> shift) * 32);
      words += kRowBytes, codes += 512;
    }
    copy_async_commit();
  };
  const auto say = [&](int at) {  // for all of this warp's copies that have been waited for
    show_to_warpgroups();
    warp_sync();
    if (lane == 0) barrier_arrive(full + 8 * at);
  };

  int now = 0, phase = 0;  // the stage at hand, in the ring
  const std::uint64_t b = swizzled(input);
  const auto walk = [&](auto octets) {
    constexpr int kOctets = decltype(octets)::value, kValues = 4 * kOctets;  // value: 4 o + 2 h + e
    float sums[kValues];
#pragma unroll 1
    for (int s = 0; s < stages; ++s) {
      copy_async_wait<kAhead - kSaid - 1>();
      say(after(now, kSaid));
      barrier_wait(full + 8 * now, phase);
      show_to_warpgroups();  // the others' copies
      int next = s + kAhead;
      if (next >= stages) {  // of the next job
        next -= stages;
        if (next == 0) turn_to(job + step);
      }
      bring(next, after(now, kAhead));
      const char* const slot = slots + now * (kWarps * kSlotBytes);
      const std::uint64_t x = b + now * (kInputBytes / 16);
      now += 1;
      if (now == kRing) now = 0, phase ^= 1;
      const uint4 v = *reinterpret_cast<const uint4*>(slot + lane * 16);
      const std::uint32_t w[4] = {v.x, v.y, v.z, v.w};
      std::uint32_t of[4][4];  // 16 columns; fragment
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const std::uint32_t both = *reinterpret_cast<const std::uint32_t*>(
            slot + 512 + (Groups32 ? 32 * c : 0) + 4 * g);  // scales of rows g and g + 8
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const std::uint32_t scale = half_twice(both, h), u = w[2 * c + h];
          of[2 * c][h] = low_halves(u, scale), of[2 * c][2 + h] = low_halves(u >> 8, scale);
          of[2 * c + 1][h] = high_halves(u, scale),
                     of[2 * c + 1][2 + h] = high_halves(u >> 8, scale);
        }
      }
      warpgroup_begin();
#pragma unroll
      for (int j = 0; j < 4; ++j)
        warpgroup_mma_half<kOctets>(sums, of[j][0], of[j][1], of[j][2], of[j][3], x + 2 * j,
                                    s + j > 0);
      warpgroup_end(sums);
    }

    const BlockRows rows = rows_of(job);
    const Where tile = tile_of(job);
    const Product& out = tile.o != nullptr ? *tile.o : a.out[0];
    const float* const x_scale = x_scales + job / step % kKept * kRows + 2 * t;
    const int n = tile.tile * kTile + g, left = rows.rows - 2 * t;
    const bool has[] = {tile.o != nullptr && n < out.w.n, tile.o != nullptr && n + 8 < out.w.n};
    const float bias[] = {has[0] && out.bias != nullptr ? out.bias[n] : 0.0f,
                          has[1] && out.bias != nullptr ? out.bias[n + 8] : 0.0f};
    const auto value = [&](int i) {
      return sums[i] * x_scale[i / 4 * 8 + i % 2] + bias[i / 2 % 2];
    };
    // Of the rows that are there: of the octets of one parity, or all (2). use(value, y + n)
    const auto each = [&](int parity, float* y, std::int64_t ldy, auto&& use) {
#pragma unroll
      for (int o = 0; o < kOctets; ++o) {
        if (o % 2 == 1 - parity) continue;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (8 * o + e >= left) continue;
          float* const to = y + rows.y(8 * o + 2 * t + e) * ldy + n;
          if (has[0]) use(4 * o + e, to);
          if (has[1]) use(4 * o + 2 + e, to + 8);
        }
      }
    };
    if (!swiglu) {
      each(2, out.y, out.ldy, [&](int i, float* to) { *to = value(i); });
      return;
    }
    // Half of the warps have gate's, the others up's: either gives the other half of its values,
    // through the last four buffers read, and makes what it has both of.
    const bool is_up = warp >= kWarps / 2;
    const auto way = [&](int i) -> float& {
      constexpr int kEach = kValues / 4;
      const int at = (now + kRing - 1 - i / kEach) % kRing;
      return reinterpret_cast<float*>(
          input + at * kInputBytes)[i % kEach * (kThreads / 2) + tid % (kThreads / 2)];
    };
    static_assert(kRing - kAhead >= 4 || Octets > 16);
    block_sync();
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      if ((i / 4 % 2 == 0) == is_up) way(i) = value(i);
    block_sync();
    float* const y = a.out[0].y;
    const std::int64_t ldy = a.out[0].ldy;
    if (is_up)
      each(1, y, ldy, [&](int i, float* to) { *to = silu_near(way(i)) * value(i); });
    else
      each(0, y, ldy, [&](int i, float* to) { *to = silu_near(value(i)) * way(i); });
    block_sync();  // before the next stages come there
  };
  turn_to(job);
#pragma unroll 1
  for (int i = 0; i < kAhead; ++i) bring(i, i);
  copy_async_wait<kAhead - kSaid>();
#pragma unroll 1
  for (int i = 0; i < kSaid; ++i) say(i);
#pragma unroll 1
  for (; job < jobs; job += step) {
    if constexpr (Octets > 8) {
      walk(Count<Octets>{});
    } else {
      const int many = rows_of(job).rows;
      if (many <= 16)
        walk(Count<2>{});
      else if (many <= 32)
        walk(Count<4>{});
      else
        walk(Count<8>{});
    }
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
    if (w.groups != first.groups || w.stages < kAhead) return false;
  }
  return true;
}

void launch_gemm_half(const Queue& q, MultiplyArgs a) {
  const Matrix& w = a.out[0].w;
  const bool swiglu = a.finish == Finish::SwiGlu, grouped = a.groups != nullptr;
  a.jobs = 0;
  for (int i = 0; i < (swiglu ? 1 : a.outputs); ++i) a.jobs += a.out[i].w.tiles;
  const int tile_blocks = blocks_of(a.jobs, swiglu),
            most = q.blocks > 0 ? q.blocks : q.multiprocessors;
  // So many rows at a time that the last jobs leave few multiprocessors idle.
  const auto jobs = [&](int octets) { return (a.m + 8 * octets - 1) / (8 * octets) * tile_blocks; };
  const auto cost = [&](int octets) {
    return (jobs(octets) + q.multiprocessors - 1) / q.multiprocessors * (octets + 1);
  };
  const int octets = grouped || a.m <= 64 ? 8 : !swiglu && cost(20) < cost(16) ? 20 : 16;
  const Kernel kernel = octets == 8    ? kernel_of<8>(w)
                        : octets == 16 ? kernel_of<16>(w)
                                       : kernel_of<20>(w);
  const int all = grouped ? a.max_tasks * tile_blocks : jobs(octets);
  launch(q, "gemm_half", kernel, dim3{static_cast<unsigned>(all < most ? all : most)}, kThreads,
         shared_bytes(octets), a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
