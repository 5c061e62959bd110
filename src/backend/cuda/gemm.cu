// y = W x for many rows of x in fixed point: symmetric INT4 and INT8 whose groups never part a
// stage (every other weight goes through multiply.cu, 8 rows at a time). The bits are
// multiply.cu's: a thread walks the stages of its rows in ascending order with one fp32 sum each,
// and adds pieces as the tree. Rows of x are prepared before (launch_prepare).
//
// A block of 8 warps takes 64 rows of x and 8 R tiles of W, a warp R tiles of 16 rows (with SwiGLU:
// a tile of gate and the same of up). Stages come through buffers in shared memory
// (cp.async): 8 KB of x for all warps, 512 bytes of codes (1024 of int8) a tile. Codes become mma's
// bytes in registers, once for 64 rows of x. Blocks of the same tiles are neighbours, so that W is
// read from memory once and else from L2.
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"
#include "ops/pieces.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kRows = 64, kOctets = kRows / 4;
constexpr int kInputBytes = kRows * (128 + static_cast<int>(sizeof(RowMeta)));

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

// The sums of one thread: rows g and g + 8 of each tile times rows 4 o + t of x. What is seldom
// touched (of one piece: the segments; of several: pieces that wait for their like in the tree)
// lies Far, in shared memory where there is room, and leaves registers to the products.
template <int R, bool Pieces, bool Far>
struct Sums {
  static constexpr int kValues = R * kOctets * 2, kLevels = Pieces ? 3 : 1;
  static constexpr std::size_t kFarBytes = Far ? sizeof(float) * kLevels * kValues * kThreads : 0;
  float acc[kValues] = {};
  float segments[Pieces ? kValues : 1] = {};
  float near_[Far ? 1 : kLevels][kValues];
  float* far;  // + tid
  int piece = 0;
  bool empty = true;
  __device__ __forceinline__ explicit Sums(char* shared)
      : far(reinterpret_cast<float*>(shared) + threadIdx.x) {}
  __device__ __forceinline__ float& level(int n, int i) {
    return Far ? far[(n * kValues + i) * kThreads] : near_[n][i];
  }
  __device__ __forceinline__ float& segment(int i) { return Pieces ? segments[i] : level(0, i); }
  __device__ __forceinline__ void close_segment() {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      segment(i) = (!Pieces && empty ? 0.0f : segment(i)) + acc[i];
      acc[i] = 0;
    }
    empty = false;
  }
  // A piece has ended; after the last, segment() is the whole.
  __device__ __forceinline__ void close(int pieces) {
    const int p = piece++;
    if constexpr (Pieces) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        float v = segments[i];
        if (p % 2 == 0) {
          level(0, i) = v;
        } else {
          v = level(0, i) + v;
          if (p / 2 % 2 == 0) {
            level(1, i) = v;
          } else {
            v = level(1, i) + v;
            if (p / 4 % 2 == 0)
              level(2, i) = v;
            else
              v = level(2, i) + v;
          }
        }
        segments[i] = p + 1 == pieces ? v : 0.0f;
      }
    }
  }
};
template <int R>
__device__ __forceinline__ constexpr int value(int r, int o, int h) {
  return (r * kOctets + o) * 2 + h;
}

template <int R, bool Pieces, bool Far>
__global__ void __launch_bounds__(kThreads, Far && !Pieces ? 2 : 1)
    gemm(const __grid_constant__ MultiplyArgs a) {
  start_next(), await_last();
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32, g = lane / 4,
            t = lane % 4;
  const Matrix& first = a.out[0].w;
  const int stages = first.stages, row0 = static_cast<int>(blockIdx.x) * kRows;
  const bool swiglu = a.finish == Finish::SwiGlu, bytes = first.type == kInt8;
  const int job = static_cast<int>(blockIdx.y) * kWarps + warp;
  Where tiles[R];
#pragma unroll
  for (int r = 0; r < R; ++r)
    tiles[r] = !swiglu        ? where(a, job * R + r)
               : job < a.jobs ? Where{&a.out[r], job}
                              : Where{nullptr, 0};

  constexpr int kBuffers = buffers(Far && !Pieces);
  char* memory = shared_memory() + Sums<R, Pieces, Far>::kFarBytes;
  const int buffer_bytes = kInputBytes + kWarps * R * a.slot_bytes;
  const auto bring = [&](int s) {
    char* to = memory + s % kBuffers * buffer_bytes;
    if (s < stages) {
      const char* words = static_cast<const char*>(a.fixed.words);
      for (int i = tid; i < kRows * 8; i += kThreads)  // 16 bytes of one row of x each
        if (row0 + i / 8 < a.m)
          copy_async16(
              to + i * 16,
              words + (static_cast<std::int64_t>(row0 + i / 8) * stages + s) * 128 + i % 8 * 16);
      if (tid < kRows && row0 + tid < a.m)
        copy_async16(to + kRows * 128 + tid * 16,
                     a.fixed.meta + static_cast<std::int64_t>(row0 + tid) * stages + s);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (tiles[r].o == nullptr) continue;
        const Matrix& w = tiles[r].o->w;
        char* slot = to + kInputBytes + (warp * R + r) * a.slot_bytes + lane * 16;
        const std::uint8_t* codes =
            w.codes + (static_cast<std::int64_t>(tiles[r].tile) * stages + s) * w.stage_bytes;
        for (int i = 0; i < w.stage_bytes; i += 512) copy_async16(slot + i, codes + i + lane * 16);
        if (lane * 16 < w.record_bytes)
          copy_async16(slot + w.stage_bytes,
                       w.scales +
                           (static_cast<std::int64_t>(tiles[r].tile) * w.groups + w.plan[s].group) *
                               w.record_bytes +
                           lane * 16);
      }
    }
    copy_async_commit();
  };
  for (int s = 0; s + 1 < kBuffers; ++s) bring(s);

  Sums<R, Pieces, Far> sums(shared_memory());
  int segment = 0;  // its end
  for (int s = 0; s < stages; ++s) {
    copy_async_wait<kBuffers - 2>();
    block_sync();  // stage s is there for all, and nobody reads stage s - 1 any more
    bring(s + kBuffers - 1);
    if (s >= segment) {  // the next one, perhaps of another piece
      if constexpr (Pieces)
        while (first.piece_end[sums.piece] <= s) sums.close(first.pieces);
      const int begin = sums.piece > 0 ? first.piece_end[sums.piece - 1] : 0;
      segment = begin + segment_after(s - begin, first.piece_end[sums.piece] - begin);
    }
    const char* in = memory + s % kBuffers * buffer_bytes;
    const RowMeta* meta = reinterpret_cast<const RowMeta*>(in + kRows * 128);
    std::uint32_t code[R][8];
    float scale[R][2];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const char* slot = in + kInputBytes + (warp * R + r) * a.slot_bytes;
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
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      // Column g of this octet: limb g % 2 of row 4 o + g / 2 of x.
      const uint4 b = reinterpret_cast<const uint4*>(in)[(4 * o + g / 2) * 8 + g % 2 * 4 + t];
      const RowMeta x = meta[4 * o + t];
      const int less = bytes ? 0 : x.minus8;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        int c[4] = {};
        if (bytes) {
          mma_s8s8(c, code[r][0], code[r][1], code[r][2], code[r][3], b.x, b.y);
          mma_s8s8(c, code[r][4], code[r][5], code[r][6], code[r][7], b.z, b.w);
        } else {
          mma_u8s8(c, code[r][0], code[r][1], code[r][2], code[r][3], b.x, b.y);
          mma_u8s8(c, code[r][4], code[r][5], code[r][6], code[r][7], b.z, b.w);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h)
          sums.acc[value<R>(r, o, h)] =
              fmaf(static_cast<float>(c[2 * h] * 256 + c[2 * h + 1] + less), scale[r][h] * x.scale,
                   sums.acc[value<R>(r, o, h)]);
      }
    }
    if (s + 1 == segment) sums.close_segment();
  }
  if constexpr (Pieces)
    while (sums.piece < first.pieces) sums.close(first.pieces);

  const auto biased = [&](int r, int o, int h) {
    const int at = tiles[r].tile * kTile + g + 8 * h;
    const float v = sums.segment(value<R>(r, o, h));
    return tiles[r].o->bias != nullptr && at < tiles[r].o->w.n ? v + tiles[r].o->bias[at] : v;
  };
#pragma unroll
  for (int o = 0; o < kOctets; ++o) {
    const std::int64_t row = row0 + 4 * o + t;
    if (row >= a.m) continue;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (tiles[r].o == nullptr || (swiglu && r > 0)) continue;
        const int at = tiles[r].tile * kTile + g + 8 * h;
        if (at >= tiles[r].o->w.n) continue;
        float v = biased(r, o, h);
        if (swiglu) v = silu(v) * biased(R - 1, o, h);
        tiles[r].o->y[row * tiles[r].o->ldy + at] = v;
      }
  }
}

}  // namespace

bool can_gemm(const MultiplyArgs& a) {
  for (int i = 0; i < a.outputs; ++i) {
    const Matrix& w = a.out[i].w;
    if (w.type != a.out[0].w.type || w.scale_bytes != a.out[0].w.scale_bytes) return false;
    if ((w.type != kInt4 && w.type != kInt8) || w.max_units != 1) return false;
  }
  return a.finish == Finish::Store || (a.finish == Finish::SwiGlu && a.out[0].w.pieces == 1);
}

void launch_gemm(const Queue& q, MultiplyArgs a) {
  const Matrix& w = a.out[0].w;
  const bool pieces = w.pieces > 1;
  const int per_warp = pieces ? 1 : 2;
  a.slot_bytes = (w.stage_bytes + w.record_bytes + 15) / 16 * 16;
  int warps = 0;
  for (int i = 0; i < a.outputs; ++i) warps += a.out[i].w.tiles;
  warps = a.finish == Finish::SwiGlu ? w.tiles : (warps + per_warp - 1) / per_warp;
  a.jobs = warps;
  const dim3 grid{static_cast<unsigned>((a.m + kRows - 1) / kRows),
                  static_cast<unsigned>((warps + kWarps - 1) / kWarps)};
  const auto shared = [&](int count, std::size_t far) {
    return far + static_cast<std::size_t>(count * (kInputBytes + kWarps * per_warp * a.slot_bytes));
  };
  const std::size_t whole = shared(buffers(false), 0),
                    far = pieces ? shared(buffers(false), Sums<1, true, true>::kFarBytes)
                                 : shared(buffers(true), Sums<2, false, true>::kFarBytes);
  const bool fits = far <= q.shared_limit;
  const auto kernel = pieces ? fits ? gemm<1, true, true> : gemm<1, true, false>
                      : fits ? gemm<2, false, true>
                             : gemm<2, false, false>;
  launch(q, "gemm", kernel, grid, kThreads, fits ? far : whole, a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
