// y = W x for many rows of x in fixed point: symmetric INT4 and INT8 whose groups never part a
// stage (every other weight goes through multiply.cu, 8 rows at a time). The bits are
// multiply.cu's: a thread walks the stages of its rows in ascending order with one fp32 sum each,
// and adds segments, and pieces as the tree. Rows of x are prepared before (launch_prepare).
//
// A block of 8 warps takes 64 rows of x and 16 tiles of W, a warp 2 tiles of 16 rows (with SwiGLU:
// a tile of gate and the same of up). Stages come through buffers in shared memory
// (cp.async): 8 KB of x for all warps, 512 bytes of codes (1024 of int8) a tile. Codes become mma's
// bytes in registers, once for 64 rows of x. mma.m16n8k32 takes 8 rows of x: first their high
// limbs; what they sum to, times 256 and less 8 sums of q, is where the low limbs go on.
// Blocks of the same tiles are neighbours, so that W is read from memory once and else from L2.
#include "backend/cuda/gemm.cuh"
#include "ops/pieces.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kRows = kGemmRows, kOctets = kRows / 8,
              kTiles = 2;
constexpr int kLimbBytes = kRows * 64,
              kInputBytes = 2 * kLimbBytes + kRows * static_cast<int>(sizeof(RowMeta));
constexpr int kValues = kTiles * kOctets * 4;  // of a thread

// Of two blocks on a multiprocessor, each has one more on its way; of one, two.
constexpr int buffers(bool two_blocks) { return two_blocks ? 2 : 3; }

template <bool Far>
using GemmSums = Sums<kValues, kThreads, Far>;
__device__ __forceinline__ constexpr int value(int r, int o, int h, int e) {
  return ((r * kOctets + o) * 2 + h) * 2 + e;
}

template <bool Far>
__global__ void __launch_bounds__(kThreads, Far ? 2 : 1)
    gemm(const __grid_constant__ MultiplyArgs a) {
  start_next(), await_last();
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32, g = lane / 4,
            t = lane % 4;
  const Matrix& first = a.out[0].w;
  const int stages = first.stages;
  const bool swiglu = a.finish == Finish::SwiGlu, bytes = first.type == kInt8;
  if (!has_rows(a)) return;
  const BlockRows rows(a);
  const int job = static_cast<int>(blockIdx.y) * kWarps + warp;
  Where tiles[kTiles];
#pragma unroll
  for (int r = 0; r < kTiles; ++r)
    tiles[r] = swiglu ? where_pair(a, job, r) : where(a, job * kTiles + r);
  const TileBytes of_tiles[kTiles] = {{a, tiles[0], rows.matrix}, {a, tiles[1], rows.matrix}};

  constexpr int kBuffers = buffers(Far);
  char* memory = shared_memory() + GemmSums<Far>::kFarBytes;
  const int buffer_bytes = kInputBytes + kWarps * kTiles * a.slot_bytes;
  const char* words[2];  // 16 bytes of two rows of x
#pragma unroll
  for (int i = 0; i < 2; ++i)
    words[i] = static_cast<const char*>(a.fixed.words) + rows.x(tid / 8 + 32 * i) * stages * 128 +
               tid % 8 * 16;
  const RowMeta* metas = a.fixed.meta + rows.x(tid % kRows) * stages;
  const auto bring = [&](int s) {
    char* to = memory + s % kBuffers * buffer_bytes;
    if (s < stages) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        copy_async16(to + tid % 8 / 4 * kLimbBytes + (tid / 8 + 32 * i) * 64 + tid % 4 * 16,
                     words[i] + s * 128);
      if (tid < kRows) copy_async16(to + 2 * kLimbBytes + tid * 16, metas + s);
      const int group = first.group_shift >= 0 ? s >> first.group_shift : first.plan[s].group;
#pragma unroll
      for (int r = 0; r < kTiles; ++r) {
        char* slot = to + kInputBytes + (warp * kTiles + r) * a.slot_bytes + lane * 16;
        const std::uint8_t* from =
            of_tiles[r].codes + static_cast<std::int64_t>(s) * first.stage_bytes;
        copy_async16(slot, from);
        if (bytes) copy_async16(slot + 512, from + 512);
        if (lane * 16 < first.record_bytes)
          copy_async16(slot + first.stage_bytes, of_tiles[r].scales + group * first.record_bytes);
      }
    }
    copy_async_commit();
  };
  for (int s = 0; s + 1 < kBuffers; ++s) bring(s);

  GemmSums<Far> sums(shared_memory());
  int segment = 0, piece = 0;  // its end; which
  const bool apart = first.pieces > 1 || a.finish == Finish::Pieces;
  const auto each = [&](auto&& f) {  // of the thread's sums that exist
#pragma unroll
    for (int o = 0; o < kOctets; ++o)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = 8 * o + 2 * t + e;
        if (row >= rows.rows) continue;
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
          if (tiles[r].o == nullptr) continue;
#pragma unroll
          for (int h = 0; h < 2; ++h)
            if (const int n = tiles[r].tile * kTile + g + 8 * h; n < tiles[r].o->w.n)
              f(r, value(r, o, h, e), rows.y(row), n);
        }
      }
  };
  const auto close_piece = [&] {
    each([&](int, int i, int y, int n) { *sum_of_piece(a, y, piece, n) = sums.sum(i); });
    sums.empty = true, ++piece;
  };
  for (int s = 0; s < stages; ++s) {
    copy_async_wait<kBuffers - 2>();
    block_sync();  // stage s is there for all, and nobody reads stage s - 1 any more
    bring(s + kBuffers - 1);
    if (s >= segment) {  // the next one, perhaps of another piece
      while (apart && first.piece_end[piece] <= s) close_piece();
      const int begin = piece > 0 ? first.piece_end[piece - 1] : 0;
      segment = begin + segment_after(s - begin, first.piece_end[piece] - begin);
    }
    const char* in = memory + s % kBuffers * buffer_bytes;
    const uint4* limbs = reinterpret_cast<const uint4*>(in) + lane;
    const RowMeta* meta = reinterpret_cast<const RowMeta*>(in + 2 * kLimbBytes) + 2 * t;
    std::uint32_t code[kTiles][8];
    float scale[kTiles][2];
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
      const char* slot = in + kInputBytes + (warp * kTiles + r) * a.slot_bytes;
      const uint4* from = reinterpret_cast<const uint4*>(slot);
      if (bytes) {
        const uint4 v = from[lane], w = from[32 + lane];
        code[r][0] = v.x, code[r][1] = v.y, code[r][2] = v.z, code[r][3] = v.w;
        code[r][4] = w.x, code[r][5] = w.y, code[r][6] = w.z, code[r][7] = w.w;
      } else {
        constexpr std::uint32_t kLow = 0x0f0f0f0f;
        const uint4 v = from[lane];
        code[r][0] = v.x & kLow, code[r][1] = v.y & kLow, code[r][2] = v.x >> 4 & kLow;
        code[r][3] = v.y >> 4 & kLow, code[r][4] = v.z & kLow, code[r][5] = v.w & kLow;
        code[r][6] = v.z >> 4 & kLow, code[r][7] = v.w >> 4 & kLow;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const char* record = slot + first.stage_bytes;
        scale[r][h] = first.scale_bytes == 2
                          ? from_half(reinterpret_cast<const std::uint16_t*>(record)[2 * g + h])
                          : reinterpret_cast<const float*>(record)[2 * g + h];
      }
    }
    const auto products = [&](auto&& mma) {
#pragma unroll
      for (int o = 0; o < kOctets; ++o) {
        const uint4 high = limbs[32 * o], low = limbs[kLimbBytes / 16 + 32 * o];
        const RowMeta* of = meta + 8 * o;
        const float x[2] = {of[0].scale, of[1].scale};
        const int less[2] = {of[0].minus8, of[1].minus8};
        int c[kTiles][4];
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
          c[r][0] = c[r][1] = c[r][2] = c[r][3] = 0;
          mma(c[r], code[r][0], code[r][1], code[r][2], code[r][3], high.x, high.y);
        }
#pragma unroll
        for (int r = 0; r < kTiles; ++r)
          mma(c[r], code[r][4], code[r][5], code[r][6], code[r][7], high.z, high.w);
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
#pragma unroll
          for (int i = 0; i < 4; ++i) c[r][i] = c[r][i] * 256 + (bytes ? 0 : less[i % 2]);
          mma(c[r], code[r][0], code[r][1], code[r][2], code[r][3], low.x, low.y);
        }
#pragma unroll
        for (int r = 0; r < kTiles; ++r)
          mma(c[r], code[r][4], code[r][5], code[r][6], code[r][7], low.z, low.w);
#pragma unroll
        for (int r = 0; r < kTiles; ++r)
#pragma unroll
          for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              float& sum = sums.acc[value(r, o, h, e)];
              sum = fmaf(static_cast<float>(c[r][2 * h + e]), scale[r][h] * x[e], sum);
            }
      }
    };
    if (bytes)
      products([](auto&... x) { mma_s8s8(x...); });
    else
      products([](auto&... x) { mma_u8s8(x...); });
    if (s + 1 == segment) sums.close_segment();
  }
  if (apart)
    while (piece < first.pieces) close_piece();
  if (a.finish == Finish::Pieces) return;

  const auto whole = [&](int r, int i, int y, int n) {
    const float v = apart ? add_pieces(a, y, n) : sums.sum(i);
    return tiles[r].o->bias != nullptr ? v + tiles[r].o->bias[n] : v;
  };
  each([&](int r, int i, int y, int n) {
    if (swiglu && r > 0) return;
    float v = whole(r, i, y, n);
    if (swiglu) v = silu(v) * whole(kTiles - 1, i + value(kTiles - 1, 0, 0, 0), y, n);
    tiles[r].o->y[static_cast<std::int64_t>(y) * tiles[r].o->ldy + n] = v;
  });
}

}  // namespace

bool can_gemm(const MultiplyArgs& a) {
  const Matrix& first = a.out[0].w;
  for (int i = 0; i < a.outputs; ++i) {
    const Matrix& w = a.out[i].w;
    if (w.type != first.type || w.scale_bytes != first.scale_bytes) return false;
    if ((w.type != kInt4 && w.type != kInt8) || w.max_units != 1) return false;
    if (w.groups != first.groups || w.pieces != first.pieces) return false;
  }
  const bool apart = first.pieces > 1 || a.finish == Finish::Pieces;
  return !apart || (a.outputs == 1 && a.finish != Finish::SwiGlu);
}

std::size_t gemm_scratch(const MultiplyArgs& a) {
  if (a.out[0].w.pieces == 1 || a.finish != Finish::Store) return 0;
  return static_cast<std::size_t>(a.m) * kMaxPieces * static_cast<std::size_t>(a.out[0].ldy);
}

void launch_gemm(const Queue& q, MultiplyArgs a, float* scratch) {
  if (a.fixed.straight) return launch_gemm_wide(q, a, scratch);
  const Matrix& w = a.out[0].w;
  a.piece_sums = a.finish == Finish::Pieces ? a.out[0].y : scratch;
  a.slot_bytes = (w.stage_bytes + w.record_bytes + 15) / 16 * 16;
  int warps = 0;
  for (int i = 0; i < a.outputs; ++i) warps += a.out[i].w.tiles;
  warps = a.finish == Finish::SwiGlu ? w.tiles : (warps + kTiles - 1) / kTiles;
  a.jobs = warps;
  const dim3 grid{gemm_row_blocks(a), static_cast<unsigned>((warps + kWarps - 1) / kWarps)};
  const auto shared = [&](bool far) {
    return (far ? GemmSums<true>::kFarBytes : 0) +
           static_cast<std::size_t>(buffers(far) * (kInputBytes + kWarps * kTiles * a.slot_bytes));
  };
  const bool fits = shared(true) <= q.shared_limit;
  launch(q, "gemm", fits ? gemm<true> : gemm<false>, grid, kThreads, shared(fits), a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
