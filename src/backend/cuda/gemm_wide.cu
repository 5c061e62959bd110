// gemm.cu's products, with its bits, by Hopper's matrix instructions: four warps multiply 64 rows
// of W, one tile each, with up to 64 rows of x.
//
// A block of 16 warps takes 16 tiles (with SwiGLU: 8 of gate and the same of up) and 64 rows of x;
// a stage of x is 8 KB, 128 bytes a row, high limbs then low ones in the order of columns
// (Fixed::straight), swizzled as B is to be. Codes become A's bytes in registers, once for both
// limbs: the high limbs' sum, times 256 and less 8 sums of q, is where the low limbs go on, and
// what comes out is scaled and added in fp32. That takes the vector units about as long as the
// products take the others, so four warpgroups keep each other company; they meet every two
// stages. Of few rows of x (a mixture's), only as many columns as they need.
#include "backend/cuda/gemm.cuh"
#include "backend/cuda/warpgroup.h"
#include "ops/pieces.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps, kTurn = 2,  // stages between barriers
    kBuffers = 3 * kTurn, kRowBytes = 128, kInputBytes = kGemmRows * kRowBytes,
              kMetaBytes = kGemmRows * 8, kAlign = 1024;
constexpr int kMostValues = kGemmRows / 2;  // of a thread
using FarSums = Sums<kMostValues, kThreads, true>;

template <int N>
struct Count {
  static constexpr int value = N;
};

template <bool Bytes>
__global__ void __launch_bounds__(kThreads, 1) gemm_wide(const __grid_constant__ MultiplyArgs a) {
#ifdef NIBBLE_HAS_WARPGROUPS
  start_next(), await_last();
  if (!has_rows(a)) return;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32, g = lane / 4,
            t = lane % 4;
  const Matrix& first = a.out[0].w;
  const int stages = first.stages;
  const bool swiglu = a.finish == Finish::SwiGlu;
  const BlockRows rows(a);
  const int block = static_cast<int>(blockIdx.y);
  const Where tile =
      swiglu ? where_pair(a, block * (kWarps / 2) + warp % (kWarps / 2), warp / (kWarps / 2))
             : where(a, block * kWarps + warp);
  const TileBytes bytes(a, tile, rows.matrix);

  // Inputs [kBuffers], where the swizzle begins anew; then of each stage: scales of x, -8 sums of
  // q, slots of the warps; then sums of segments.
  char* input = shared_memory();
  input += (kAlign - reinterpret_cast<std::uintptr_t>(input) % kAlign) % kAlign;
  char* const others = input + kBuffers * kInputBytes;
  const int other_bytes = kMetaBytes + kWarps * a.slot_bytes;
  char* const far = others + kBuffers * other_bytes;

  // This thread's part of a stage of x: 16 bytes of row `row`, and perhaps a scale or a sum.
  const int row = tid / 8, many = rows.rows < kGemmRows ? (rows.rows + 15) / 16 * 16 : kGemmRows;
  const char* words =
      static_cast<const char*>(a.fixed.words) + rows.x(row) * stages * 128 + tid % 8 * 16;
  const int input_at = row * kRowBytes + (tid % 8 ^ row % 8) * 16;
  const RowMeta* meta = a.fixed.meta + rows.x(tid % kGemmRows) * stages;
  const auto bring = [&](int turn) {
#pragma unroll
    for (int i = 0; i < kTurn; ++i) {
      const int s = turn * kTurn + i, buffer = s % kBuffers;
      if (s >= stages) break;
      if (row < many) copy_async16(input + buffer * kInputBytes + input_at, words + s * 128);
      char* to = others + buffer * other_bytes;
      if (tid < many) copy_async<8>(to + tid * 8, meta + s);  // scale and minus8
      char* slot = to + kMetaBytes + warp * a.slot_bytes + lane * 16;
      const std::uint8_t* from = bytes.codes + static_cast<std::int64_t>(s) * first.stage_bytes;
      copy_async16(slot, from);
      if (Bytes) copy_async16(slot + 512, from + 512);
      const int group = first.group_shift >= 0 ? s >> first.group_shift : first.plan[s].group;
      if (lane * 16 < first.record_bytes)
        copy_async16(slot + first.stage_bytes, bytes.scales + group * first.record_bytes);
    }
    copy_async_commit();
  };

  const bool apart = first.pieces > 1 || a.finish == Finish::Pieces;
  const auto walk = [&](auto octets) {
    constexpr int kOctets = decltype(octets)::value, kValues = 4 * kOctets;  // value: 4 o + 2 h + e
    Sums<kValues, kThreads, true> sums(far);
    int segment = 0, piece = 0;  // its end; which
    // Rolled: they come of shared memory, and registers are for products.
    const auto each = [&](auto&& f) {  // of the thread's sums that exist
      if (tile.o == nullptr) return;
#pragma unroll 1
      for (int i = 0; i < kValues; ++i) {
        const int r = i / 4 * 8 + 2 * t + i % 2, n = tile.tile * kTile + g + i / 2 % 2 * 8;
        if (r < rows.rows && n < tile.o->w.n) f(i, rows.y(r), n);
      }
    };
    const auto close_piece = [&] {
      each([&](int i, int y, int n) { *sum_of_piece(a, y, piece, n) = sums.sum(i); });
      sums.empty = true, ++piece;
    };
    bring(0), bring(1);
#pragma unroll 1
    for (int turn = 0; turn * kTurn < stages; ++turn) {
      copy_async_wait<1>();
      show_to_warpgroups();
      block_sync();  // this turn's stages are there for all, and nobody reads the last one's
      bring(turn + 2);
#pragma unroll 1
      for (int s = turn * kTurn; s < stages && s < (turn + 1) * kTurn; ++s) {
        if (s >= segment) {  // the next one, perhaps of another piece
          while (apart && first.piece_end[piece] <= s) close_piece();
          const int begin = piece > 0 ? first.piece_end[piece - 1] : 0;
          segment = begin + segment_after(s - begin, first.piece_end[piece] - begin);
        }
        const int buffer = s % kBuffers;
        const char *high = input + buffer * kInputBytes, *low = high + kRowBytes / 2,
                   *other = others + buffer * other_bytes,
                   *slot = other + kMetaBytes + warp * a.slot_bytes;
        const uint4* scale_less = reinterpret_cast<const uint4*>(other) + t;  // of two rows
        std::uint32_t w[8];
        const uint4 v = reinterpret_cast<const uint4*>(slot)[lane];
        if constexpr (Bytes) {
          const uint4 u = reinterpret_cast<const uint4*>(slot)[32 + lane];
          w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
          w[4] = u.x, w[5] = u.y, w[6] = u.z, w[7] = u.w;
        } else {
          constexpr std::uint32_t kLow = 0x0f0f0f0f;
          w[0] = v.x & kLow, w[1] = v.y & kLow, w[2] = v.x >> 4 & kLow, w[3] = v.y >> 4 & kLow;
          w[4] = v.z & kLow, w[5] = v.w & kLow, w[6] = v.z >> 4 & kLow, w[7] = v.w >> 4 & kLow;
        }
        float scale[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const char* record = slot + first.stage_bytes;
          scale[h] = first.scale_bytes == 2
                         ? from_half(reinterpret_cast<const std::uint16_t*>(record)[2 * g + h])
                         : reinterpret_cast<const float*>(record)[2 * g + h];
        }
        int c[kValues];
        const auto multiply = [&](const char* limb, bool add) {
          warpgroup_begin();
          warpgroup_mma<!Bytes, kOctets>(c, w[0], w[1], w[2], w[3], limb, add);
          warpgroup_mma<!Bytes, kOctets>(c, w[4], w[5], w[6], w[7], limb + 32, true);
          warpgroup_end(c);
        };
        multiply(high, false);
#pragma unroll
        for (int o = 0; o < kOctets; ++o) {
          const uint4 of = scale_less[4 * o];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            int& x = c[4 * o + i];
            x = x * 256 + (Bytes ? 0 : static_cast<int>(i % 2 == 0 ? of.y : of.w));
          }
        }
        multiply(low, true);
#pragma unroll
        for (int o = 0; o < kOctets; ++o) {
          const uint4 of = scale_less[4 * o];
          const float x[2] = {bits_float(static_cast<int>(of.x)),
                              bits_float(static_cast<int>(of.z))};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& sum = sums.acc[4 * o + i];
            sum = fmaf(static_cast<float>(c[4 * o + i]), scale[i / 2] * x[i % 2], sum);
          }
        }
        if (s + 1 == segment) sums.close_segment();
      }
    }
    if (apart)
      while (piece < first.pieces) close_piece();
    if (a.finish == Finish::Pieces) return;

    const auto whole = [&](int i, int y, int n) {
      const float v = apart ? add_pieces(a, y, n) : sums.sum(i);
      return tile.o->bias != nullptr ? v + tile.o->bias[n] : v;
    };
    if (!swiglu) {
      each([&](int i, int y, int n) {
        tile.o->y[static_cast<std::int64_t>(y) * tile.o->ldy + n] = whole(i, y, n);
      });
      return;
    }
    // Half of the warps have gate's, the others up's, which go through shared memory.
    float* const up = reinterpret_cast<float*>(input) + tid % (kThreads / 2);
    copy_async_wait<0>();
    block_sync();
    if (warp >= kWarps / 2)
      each([&](int i, int y, int n) { up[i * (kThreads / 2)] = whole(i, y, n); });
    block_sync();
    if (warp < kWarps / 2)
      each([&](int i, int y, int n) {
        tile.o->y[static_cast<std::int64_t>(y) * tile.o->ldy + n] =
            silu(whole(i, y, n)) * up[i * (kThreads / 2)];
      });
  };
  if (many <= 16)
    walk(Count<2>{});
  else if (many <= 32)
    walk(Count<4>{});
  else if (many <= 48)
    walk(Count<6>{});
  else
    walk(Count<8>{});
#endif
}

}  // namespace

void launch_gemm_wide(const Queue& q, MultiplyArgs a, float* scratch) {
  const Matrix& w = a.out[0].w;
  a.piece_sums = a.finish == Finish::Pieces ? a.out[0].y : scratch;
  a.slot_bytes = (w.stage_bytes + w.record_bytes + 15) / 16 * 16;
  a.jobs = 0;
  for (int i = 0; i < (a.finish == Finish::SwiGlu ? 1 : a.outputs); ++i) a.jobs += a.out[i].w.tiles;
  const int each = a.finish == Finish::SwiGlu ? kWarps / 2 : kWarps;
  const dim3 grid{gemm_row_blocks(a), static_cast<unsigned>((a.jobs + each - 1) / each)};
  const auto shared = static_cast<std::size_t>(
      kAlign + kBuffers * (kInputBytes + kMetaBytes + kWarps * a.slot_bytes));
  launch(q, "gemm_wide", w.type == kInt8 ? gemm_wide<true> : gemm_wide<false>, grid, kThreads,
         shared + FarSums::kFarBytes, a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
