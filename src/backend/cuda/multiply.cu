// y = W x for up to 8 rows of x a block, several matrices that share x, every weight type; and, in
// the same launch, what makes x (fused: residual + delta, RMSNorm, rounding).
//
// A job is a tile of 16 rows of W (with SwiGLU: of gate, then of up). A block of 8 warps takes a
// run of jobs; of every tile, warp w takes stages w, w + 8, ... of 64 columns. Its lanes bring
// their stages through a ring in shared memory (cp.async, started before x is prepared, and going
// on across tiles), each weight byte once, 512 bytes a warp at a time.
//
// Sums are the CPU's, bit for bit (simd/linear.inl). What a stage adds to a row's fp32 sum is one
// or more pairs: acc = fma(a, b, acc),
//   fixed point   (sum of code' q, an exact integer;  wscale * xscale)    per unit
//   fp32          (sum of code' x, in ascending order; wscale)            per unit
//   int4-affine   also (sum of x, offset)                                 per chunk
//   plain         (sum of w x; 1)
// Warps leave the pairs of a round of stages in shared memory; after a barrier, the thread of a
// (row of W, row of x) walks them in ascending order, while the others multiply the next round into
// the other half. So the split of K over warps never shows, and no order is left to chance.
// Fixed point: mma.m16n8k32 on codes (u8, or s8) and the two signed-byte limbs of x in two columns.
//
// Grid: x over jobs, y over runs of 8 rows of x (or tasks of a mixture). Aliasing: ops/linear.h.
#include "backend/cuda/prepare.cuh"
#include "backend/cuda/stage.cuh"
#include "ops/pieces.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
// Stages of a warp's ring: one in use, the others on their way. In fp32 they are larger.
template <int Octets>
inline constexpr int kRingOf = Octets == 0 ? 3 : 6;

// A thread's sum over the stages of a tile: over segments, and over pieces: ((01)(23))((45)(67)).
struct Sum {
  float acc = 0, segments = 0, one = 0, two = 0, four = 0;
  int piece = 0;
  __device__ __forceinline__ void close_segment() {
    segments = segments + acc;
    acc = 0;
  }
  // A piece has ended: returns the tree's value so far.
  __device__ __forceinline__ float close() {
    float v = segments;
    segments = 0;
    const int p = piece++;
    if (p % 2 == 0) return one = v;
    v = one + v;
    if (p / 2 % 2 == 0) return two = v;
    v = two + v;
    if (p / 4 % 2 == 0) return four = v;
    return four + v;
  }
};

// Which tile comes: part 1 is `up` of SwiGLU.
struct Tile {
  int out, part, tile;
};
__device__ __forceinline__ Tile tile_of(const MultiplyArgs& a, int job, int part) {
  if (a.finish == Finish::SwiGlu) return {part, part, job};
  int out = 0;
  while (job >= a.out[out].w.tiles) job -= a.out[out++].w.tiles;
  return {out, 0, job};
}

// The stages that a warp multiplies, in order, on their way through its ring.
template <int Ring>
class Stream {
 public:
  __device__ __forceinline__ Stream(const MultiplyArgs& a, char* ring, int matrix, int job, int end)
      : a_(a), ring_(ring), matrix_(matrix), job_(job), end_(end) {
    stage_ = warp();
    if (stage_ >= a.out[0].w.stages) job_ = end_;
    if (job_ < end_) locate();
  }
  // Asks for one stage more, or for nothing at the end.
  __device__ __forceinline__ void bring() {
    if (job_ < end_) {
      const int lane = static_cast<int>(threadIdx.x) % 32;
      char* slot = ring_ + fill_ * a_.slot_bytes + lane * 16;
      const std::uint8_t* codes = codes_ + static_cast<std::int64_t>(stage_) * w_->stage_bytes;
      for (int i = 0; i < w_->stage_bytes; i += 512) copy_async16(slot + i, codes + i);
      if (w_->type < kF16 && lane * 16 < plan_.units * w_->record_bytes)
        copy_async16(slot + w_->stage_bytes,
                     records_ + static_cast<std::int64_t>(plan_.group) * w_->record_bytes);
      advance();
    }
    copy_async_commit();
    fill_ = fill_ + 1 == Ring ? 0 : fill_ + 1;
  }

 private:
  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ __forceinline__ void locate() {
    const Tile t = tile_of(a_, job_, part_);
    w_ = &a_.out[t.out].w;
    const std::int64_t tile = static_cast<std::int64_t>(matrix_) * w_->tiles + t.tile;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    codes_ = w_->codes + tile * w_->stages * w_->stage_bytes + lane * 16;
    records_ = w_->scales + tile * w_->groups * w_->record_bytes + lane * 16;
    plan_ = w_->plan[stage_];
  }
  __device__ __forceinline__ void advance() {
    stage_ += kWarps;
    if (stage_ < w_->stages) {
      plan_ = w_->plan[stage_];  // needed at the next call: it has time
      return;
    }
    stage_ = warp();
    if (a_.finish == Finish::SwiGlu && part_ == 0) {
      part_ = 1;
    } else {
      part_ = 0, ++job_;
    }
    if (job_ < end_) locate();
  }

  const MultiplyArgs& a_;
  char* ring_;
  int matrix_, job_, end_, part_ = 0, stage_ = 0, fill_ = 0;
  const Matrix* w_ = nullptr;  // of the tile
  const std::uint8_t *codes_ = nullptr, *records_ = nullptr;
  Stage plan_{};
};

template <int Octets>  // 0: in fp32
__global__ void __launch_bounds__(kThreads, 2) multiply(const __grid_constant__ MultiplyArgs a) {
  constexpr int kRing = kRingOf<Octets>;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, stages = a.out[0].w.stages;
  start_next();
  const Task* task = nullptr;
  if (a.tasks != nullptr) {
    await_last();  // for the tasks
    if (static_cast<int>(blockIdx.y) >= *a.task_count) return;
    task = a.tasks + blockIdx.y;
  }
  const int job_begin =
                static_cast<int>(static_cast<std::int64_t>(a.jobs) * blockIdx.x / gridDim.x),
            job_end =
                static_cast<int>(static_cast<std::int64_t>(a.jobs) * (blockIdx.x + 1) / gridDim.x);

  char* ring = shared_memory() + static_cast<std::ptrdiff_t>(warp) * kRing * a.slot_bytes;
  char* free_memory = shared_memory() + static_cast<std::ptrdiff_t>(kWarps) * kRing * a.slot_bytes;

  Stream<kRing> stream(a, ring, task != nullptr ? task->matrix : 0, job_begin, job_end);
  for (int i = 0; i + 1 < kRing; ++i) stream.bring();  // one stage more is in use
  await_last();

  Rows rows{task != nullptr ? task->rows : a.m - static_cast<int>(blockIdx.y) * kMaxRows,
            static_cast<int>(blockIdx.y) * kMaxRows, task != nullptr ? task->x : nullptr};
  if (rows.count > kMaxRows) rows.count = kMaxRows;
  Fixed words = a.fixed;
  const float* real = a.real;
  float2* pairs = reinterpret_cast<float2*>(free_memory);
  const std::int64_t half =
      static_cast<std::int64_t>(a.round_stages) * a.entry_stride * rows.count * kTile;
  if (a.h_rows > 0) {  // this block prepares them: h where the pairs will be, what stays behind it
    const int k = a.source.k;
    const Slice slice{
        static_cast<int>(static_cast<std::int64_t>(k) * blockIdx.x / gridDim.x),
        static_cast<int>(static_cast<std::int64_t>(k) * (blockIdx.x + 1) / gridDim.x)};
    const std::int64_t pair_bytes = 2 * half * static_cast<std::int64_t>(sizeof(float2)),
                       h_bytes = static_cast<std::int64_t>(a.h_rows) * k * 4;
    if constexpr (Octets == 0) {
      float* h = reinterpret_cast<float*>(free_memory + pair_bytes);
      load_rows(a.source, 0, a.m, h, h + static_cast<std::int64_t>(a.m) * k, slice);
      real = h;
    } else {
      char* stay = free_memory + ((pair_bytes > h_bytes ? pair_bytes : h_bytes) + 15) / 16 * 16;
      words = {stay,
               reinterpret_cast<RowMeta*>(stay + static_cast<std::int64_t>(a.m) * stages * 128)};
      float* h = reinterpret_cast<float*>(free_memory);
      float* inv = reinterpret_cast<float*>(words.meta + static_cast<std::int64_t>(a.m) * stages);
      for (int r = 0; r < a.m; r += a.h_rows) {
        const int count = a.m - r < a.h_rows ? a.m - r : a.h_rows;
        load_rows(a.source, r, count, h, inv, slice);
        round_rows(h, count, k, a.int8, a.out[0].w.plan, stages, words, r);
        block_sync();
      }
    }
  }

  const LaneInput<Octets == 0 ? 1 : Octets> x(words, Octets == 0 ? Rows{0, 0, nullptr} : rows,
                                              stages);
  const int width = rows.count * kTile;  // sums of a tile
  const bool adds = tid < width;
  const int row = tid % kTile, m = tid / kTile;
  int use = 0, buffer = 0;
  float gate = 0;
  for (int job = job_begin; job < job_end; ++job)
    for (int part = 0; part < (a.finish == Finish::SwiGlu ? 2 : 1); ++part) {
      const Tile t = tile_of(a, job, part);
      const Product& o = a.out[t.out];
      const Matrix& w = o.w;
      const int at = t.tile * kTile + row;
      const std::int64_t y_row = !adds             ? 0
                                 : task != nullptr ? task->y[m]
                                                   : static_cast<std::int64_t>(rows.first + m);
      Sum sum;
      float total = 0;
      const auto close = [&] {  // the end of a piece; some are empty
        if (a.finish == Finish::Pieces && at < w.n)
          o.y[(y_row * kMaxPieces + sum.piece) * o.ldy + at] = sum.segments;
        total = sum.close();
      };
      for (int first = 0; first < stages; first += a.round_stages) {
        const int last = first + a.round_stages < stages ? first + a.round_stages : stages;
        float2* round = pairs + buffer * half;
        for (int s = first + warp; s < last; s += kWarps) {
          copy_async_wait<kRing - 2>();
          warp_sync();
          stream.bring();
          const char* slot = ring + use * a.slot_bytes;
          use = use + 1 == kRing ? 0 : use + 1;
          float2* to = round + static_cast<std::int64_t>(s - first) * w.entries * width;
          if constexpr (Octets == 0) {
            real_stage(w, slot, w.plan[s], real, rows, to);
          } else {
            Stage p{0, 2, 1, 0};  // where nothing else is told
            if (w.entries > 1) p = w.plan[s];
            fixed_stage<Octets>(w, slot, p, s, x, rows.count, to);
          }
        }
        block_sync();
        const float2* in = round + tid;
        for (int s = first; adds && s < last;) {
          while (sum.piece < w.pieces && w.piece_end[sum.piece] <= s) close();  // some are empty
          const int begin = sum.piece > 0 ? w.piece_end[sum.piece - 1] : 0;
          const int segment = segment_after(s - begin, w.piece_end[sum.piece] - begin) + begin;
          const int end = segment < last ? segment : last;
#pragma unroll 8
          for (int i = (end - s) * w.entries; i > 0; --i, in += width) {
            const float2 pair = *in;
            sum.acc = fmaf(pair.x, pair.y, sum.acc);
          }
          if (end == segment) sum.close_segment();
          s = end;
        }
        buffer ^= 1;
      }
      if (!adds) continue;
      while (sum.piece < w.pieces) close();
      if (a.finish == Finish::Pieces || at >= w.n) continue;
      if (o.bias != nullptr) total = total + o.bias[at];
      if (a.finish == Finish::Store) {
        o.y[y_row * o.ldy + at] = total;
      } else if (part == 0) {
        gate = total;
      } else {
        a.out[0].y[y_row * a.out[0].ldy + at] = silu(gate) * total;
      }
    }
}

// Bytes of shared memory, and how a launch with this input divides them. rows: of x, a block.
std::size_t divide(const Queue& q, MultiplyArgs& a, bool fixed, int rows, bool fused) {
  int slot = 0, entries = 1;
  for (int i = 0; i < a.outputs; ++i) {
    const Matrix& w = a.out[i].w;
    const int bytes = w.stage_bytes + w.max_units * w.record_bytes;
    slot = bytes > slot ? bytes : slot;
    entries = w.entries > entries ? w.entries : entries;
  }
  const std::size_t stages = static_cast<std::size_t>(a.out[0].w.stages),
                    k = static_cast<std::size_t>(a.source.k), m = static_cast<std::size_t>(rows);
  a.slot_bytes = (slot + 15) / 16 * 16, a.entry_stride = entries;
  const std::size_t ring = static_cast<std::size_t>(kWarps *
                                                    (fixed ? kRingOf<1> : kRingOf<0>)*a.slot_bytes),
                    pair = 2 * static_cast<std::size_t>(entries) * m * kTile * sizeof(float2);
  a.round_stages = 32;  // fewer where their pairs would be many
  while (a.round_stages > kWarps && static_cast<std::size_t>(a.round_stages) * pair > (32u << 10))
    a.round_stages /= 2;
  const std::size_t pairs = static_cast<std::size_t>(a.round_stages) * pair;
  a.h_rows = 0;
  if (!fused) return ring + pairs;
  const std::size_t runs = a.source.kind == Source::GatedNorm
                               ? k / static_cast<std::size_t>(a.source.dim)
                               : m,
                    inv = 4 * (runs > m ? runs : m);
  a.h_rows = rows;
  if (!fixed) return ring + pairs + m * k * 4 + inv;
  const std::size_t stay = m * stages * (128 + sizeof(RowMeta)) + inv + 16;
  const auto total = [&] {
    const std::size_t h = static_cast<std::size_t>(a.h_rows) * k * 4;
    return ring + (h > pairs ? h : pairs) + stay;
  };
  while (a.h_rows > 1 && total() > q.shared_limit) a.h_rows = (a.h_rows + 1) / 2;
  return total();
}

}  // namespace

bool can_fuse(const Queue& q, const MultiplyArgs& a, bool fixed) {
  MultiplyArgs b = a;
  return a.m <= kMaxRows && divide(q, b, fixed, a.m, true) <= q.shared_limit;
}

void launch_multiply(const Queue& q, MultiplyArgs a, bool fixed) {
  const bool fused = fixed ? a.fixed.words == nullptr : a.real == nullptr;
  const int rows = a.m < kMaxRows ? a.m : kMaxRows;
  const std::size_t shared = divide(q, a, fixed, a.tasks != nullptr ? kMaxRows : rows, fused);
  a.jobs = 0;
  for (int i = 0; i < (a.finish == Finish::SwiGlu ? 1 : a.outputs); ++i) a.jobs += a.out[i].w.tiles;
  const std::size_t resident = q.shared_total / (shared + 1024);
  const int per = resident < 1 ? 1 : resident > 2 ? 2 : static_cast<int>(resident);
  const int most = q.blocks > 0 ? q.blocks : q.multiprocessors * per;
  const dim3 grid{
      static_cast<unsigned>(a.jobs < most ? a.jobs : most),
      static_cast<unsigned>(a.tasks != nullptr ? a.max_tasks : (a.m + kMaxRows - 1) / kMaxRows)};
  const auto kernel = !fixed ? multiply<0> : rows > 4 || a.tasks ? multiply<2> : multiply<1>;
  launch<Begin::Stream>(q, "multiply", kernel, grid, kThreads, shared, a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
