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
// Blocks of the same tiles are neighbours, so that W is read from memory once and else from L2. Of
// several pieces each one's sums wait in memory, where their own thread adds them at the end.
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"
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

struct Where {
  const Product* o;
  int tile;
};
__device__ __forceinline__ Where where(const MultiplyArgs& a, int job) {
  int out = 0;
  while (out < a.outputs && job >= a.out[out].w.tiles) job -= a.out[out++].w.tiles;
  return {out < a.outputs ? &a.out[out] : nullptr, job};
}

// The sums of one thread: rows g + 8 h of tile r times rows 8 o + 2 t + e of x. Those of segments
// lie Far, in shared memory, and leave registers to the products, where there is room.
template <bool Far>
struct Sums {
  static constexpr std::size_t kFarBytes = Far ? sizeof(float) * kValues * kThreads : 0;
  float acc[kValues] = {};
  float near_[Far ? 1 : kValues];
  float* far;  // + tid
  bool empty = true;
  __device__ __forceinline__ explicit Sums(char* shared)
      : far(reinterpret_cast<float*>(shared) + threadIdx.x) {}
  __device__ __forceinline__ float& segment(int i) { return Far ? far[i * kThreads] : near_[i]; }
  __device__ __forceinline__ float sum(int i) { return empty ? 0.0f : segment(i); }
  __device__ __forceinline__ void close_segment() {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      segment(i) = sum(i) + acc[i];
      acc[i] = 0;
    }
    empty = false;
  }
};
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
  int row0 = static_cast<int>(blockIdx.x) * kRows, rows = a.m - row0, matrix = 0;
  const int* order = nullptr;
  if (a.groups != nullptr) {  // of a mixture: the pairs of one expert
    if (static_cast<int>(blockIdx.x) >= *a.task_count) return;
    const RowGroup group = a.groups[blockIdx.x];
    order = a.order + group.begin, rows = group.rows, matrix = group.matrix, row0 = 0;
  }
  // Row r of this block, in x and in y; past the end another one's, for nobody.
  const auto y_row = [&](int r) {
    const int i = r < rows ? r : rows - 1;
    return order != nullptr ? order[i] : row0 + i;
  };
  const auto x_row = [&](int r) {
    return static_cast<std::int64_t>(order != nullptr ? y_row(r) / a.pairs : y_row(r));
  };
  const int job = static_cast<int>(blockIdx.y) * kWarps + warp;
  Where tiles[kTiles];
  const std::uint8_t *codes[kTiles], *scales[kTiles];  // + 16 lane
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
    tiles[r] = !swiglu        ? where(a, job * kTiles + r)
               : job < a.jobs ? Where{&a.out[r], job}
                              : Where{nullptr, 0};
    const Matrix& w = tiles[r].o != nullptr ? tiles[r].o->w : first;
    const std::int64_t tile = static_cast<std::int64_t>(matrix) * w.tiles + tiles[r].tile;
    const std::int64_t at = tiles[r].o != nullptr ? tile : 0;
    codes[r] = w.codes + at * stages * w.stage_bytes + lane * 16;
    scales[r] = w.scales + at * w.groups * w.record_bytes + lane * 16;
  }

  constexpr int kBuffers = buffers(Far);
  char* memory = shared_memory() + Sums<Far>::kFarBytes;
  const int buffer_bytes = kInputBytes + kWarps * kTiles * a.slot_bytes;
  const char* words[2];  // 16 bytes of two rows of x
#pragma unroll
  for (int i = 0; i < 2; ++i)
    words[i] = static_cast<const char*>(a.fixed.words) + x_row(tid / 8 + 32 * i) * stages * 128 +
               tid % 8 * 16;
  const RowMeta* metas = a.fixed.meta + x_row(tid % kRows) * stages;
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
        const std::uint8_t* from = codes[r] + static_cast<std::int64_t>(s) * first.stage_bytes;
        copy_async16(slot, from);
        if (bytes) copy_async16(slot + 512, from + 512);
        if (lane * 16 < first.record_bytes)
          copy_async16(slot + first.stage_bytes, scales[r] + group * first.record_bytes);
      }
    }
    copy_async_commit();
  };
  for (int s = 0; s + 1 < kBuffers; ++s) bring(s);

  Sums<Far> sums(shared_memory());
  int segment = 0, piece = 0;  // its end; which
  const bool apart = first.pieces > 1 || a.finish == Finish::Pieces;
  // Where a thread's sums of a piece wait, or stay (Finish::Pieces).
  const auto of_piece = [&](int r, int o, int e, int h, int p) {
    return a.piece_sums +
           (static_cast<std::int64_t>(y_row(8 * o + 2 * t + e)) * kMaxPieces + p) * a.out[0].ldy +
           tiles[r].tile * kTile + g + 8 * h;
  };
  const auto each = [&](auto&& f) {  // of the thread's sums that exist
#pragma unroll
    for (int o = 0; o < kOctets; ++o)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * o + 2 * t + e >= rows) continue;
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
          if (tiles[r].o == nullptr) continue;
#pragma unroll
          for (int h = 0; h < 2; ++h)
            if (tiles[r].tile * kTile + g + 8 * h < tiles[r].o->w.n) f(r, o, e, h);
        }
      }
  };
  const auto close_piece = [&] {
    each([&](int r, int o, int e, int h) {
      *of_piece(r, o, e, h, piece) = sums.sum(value(r, o, h, e));
    });
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

  const auto whole = [&](int r, int o, int e, int h) {
    float v;
    if (apart) {
      float p[kMaxPieces];
#pragma unroll
      for (int i = 0; i < kMaxPieces; ++i)
        p[i] = i < first.pieces ? *of_piece(r, o, e, h, i) : 0.0f;
      const float left = (p[0] + p[1]) + (p[2] + p[3]), right = (p[4] + p[5]) + (p[6] + p[7]);
      v = first.pieces == 8 ? left + right : first.pieces == 4 ? left : p[0] + p[1];
    } else {
      v = sums.sum(value(r, o, h, e));
    }
    const float* bias = tiles[r].o->bias;
    return bias != nullptr ? v + bias[tiles[r].tile * kTile + g + 8 * h] : v;
  };
  each([&](int r, int o, int e, int h) {
    if (swiglu && r > 0) return;
    const Product& p = *tiles[r].o;
    float v = whole(r, o, e, h);
    if (swiglu) v = silu(v) * whole(kTiles - 1, o, e, h);
    p.y[static_cast<std::int64_t>(y_row(8 * o + 2 * t + e)) * p.ldy + tiles[r].tile * kTile + g +
        8 * h] = v;
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
  const Matrix& w = a.out[0].w;
  a.piece_sums = a.finish == Finish::Pieces ? a.out[0].y : scratch;
  a.slot_bytes = (w.stage_bytes + w.record_bytes + 15) / 16 * 16;
  int warps = 0;
  for (int i = 0; i < a.outputs; ++i) warps += a.out[i].w.tiles;
  warps = a.finish == Finish::SwiGlu ? w.tiles : (warps + kTiles - 1) / kTiles;
  a.jobs = warps;
  const dim3 grid{
      static_cast<unsigned>(a.groups != nullptr ? a.max_tasks : (a.m + kRows - 1) / kRows),
      static_cast<unsigned>((warps + kWarps - 1) / kWarps)};
  const auto shared = [&](bool far) {
    return (far ? Sums<true>::kFarBytes : 0) +
           static_cast<std::size_t>(buffers(far) * (kInputBytes + kWarps * kTiles * a.slot_bytes));
  };
  const bool fits = shared(true) <= q.shared_limit;
  launch(q, "gemm", fits ? gemm<true> : gemm<false>, grid, kThreads, shared(fits), a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
