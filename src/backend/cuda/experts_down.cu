// down of a mixture's chosen experts and the sum over each token's slots, of up to 8 tokens: one
// launch for gemv.cuh's and mix's (moe.cu), with their bits.
//
// A block has 16 columns of y and does them for every task, so that all they are added from lies in
// its own shared memory. A unit is a task and a piece of K; 16 warps take units by turns. A warp's
// stages come through a ring in shared memory (cp.async), filled before the launch before has
// ended: which experts it takes is known by then. Every block rounds all rows itself.
// Bytes: the experts' weights. Aliasing: ops/experts.h.
#include "backend/cuda/stream.cuh"
#include "ops/pieces.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kRing = 6;
constexpr int kPiecePitch = kTile + 4;  // so that the pieces of a column lie in different banks
constexpr int kTaskWords = sizeof(Task) / sizeof(int);
constexpr int kAskedAhead = 16;  // tasks, after those in the ring

// A warp's stages, one after the other, into its ring. (ReadOnce in its loop makes ptxas 13.0.88
// write an illegal instruction.)
template <int Groups>
struct Ring {
  static constexpr int kSlotBytes = slot_bytes(1, Groups);
  char* slot;
  int at, unit, units, stage;

  __device__ __forceinline__ void bring(const ExpertsDownArgs& a, const Task* tasks) {
    if (unit < units) {
      const int lane = static_cast<int>(threadIdx.x) % 32, of = unit % kMaxPieces * a.each + stage,
                matrix = tasks[unit / kMaxPieces].matrix, shared = matrix == a.experts;
      const std::int64_t tile =
          static_cast<std::int64_t>(shared ? 0 : matrix) * a.tiles + blockIdx.x;
      char* to = slot + at * kSlotBytes;
      copy_async16(to + lane * 16,
                   a.codes[shared] + (tile * a.stages + of) * kCodeBytes + lane * 16);
      if (lane < 2 * Groups)
        copy_async16(to + kCodeBytes + lane * 16,
                     a.scales[shared] +
                         (tile * a.groups + (of * Groups >> a.group_shift)) * kScaleBytes +
                         lane * 16);
      if (++stage == a.each) stage = 0, unit += kRowWarps;
    }
    copy_async_commit();
    at = at + 1 < kRing ? at + 1 : 0;
  }
};

template <int Octets, int Groups>
__global__ void __launch_bounds__(kRowThreads, Octets == 1 ? 2 : 1)
    experts_down(const __grid_constant__ ExpertsDownArgs a) {
  start_next();
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32,
            pairs = a.m * a.k, rows = pairs + a.m;
  char* const memory = shared_memory();
  constexpr int kSlotBytes = slot_bytes(1, Groups);
  char* const words = memory + kRowWarps * kRing * kSlotBytes;  // [row][stage] 128
  RowMeta* const meta = reinterpret_cast<RowMeta*>(words + rows * a.stages * 128);
  float* const sums = reinterpret_cast<float*>(meta + rows * a.stages);  // [row][piece][pitch]
  float* const weights = sums + rows * kMaxPieces * kPiecePitch;         // [row]
  int* const is_good = reinterpret_cast<int*>(weights + rows);           // [row]
  Task* const tasks = reinterpret_cast<Task*>(is_good + rows);
  // All of it from launches before the last one.
  const int count = a.tasks == nullptr ? rows : load_fresh(a.task_count);
  if (tid < rows) {
    const int id = tid < pairs ? load_fresh(a.ids + tid) : a.experts;
    const bool good = id >= 0 && id < a.experts + (tid >= pairs);
    if (a.tasks == nullptr) {
      tasks[tid].matrix = good ? id : 0, tasks[tid].rows = 1;
      tasks[tid].x[0] = tasks[tid].y[0] = tid;
    }
    is_good[tid] = good;
    weights[tid] =
        tid < pairs ? load_fresh(a.weights + tid) : sigmoid(load_fresh(a.shared + tid - pairs));
  }
  if (a.tasks != nullptr)
    for (int i = tid; i < count * kTaskWords; i += kRowThreads) {
      const int row = i % kTaskWords - 2;  // of x, then of y; nobody has written past the last
      if (row < 0 || row % kMaxRows < load_fresh(&a.tasks[i / kTaskWords].rows))
        reinterpret_cast<int*>(tasks)[i] = load_fresh(reinterpret_cast<const int*>(a.tasks) + i);
    }
  block_sync();

  Ring<Groups> ring{memory + warp * kRing * kSlotBytes, 0, warp, count * kMaxPieces, 0};
#pragma unroll 1
  for (int i = 0; i < kRing; ++i) ring.bring(a, tasks);
  if constexpr (Octets > 1) {
    const int task = kRing * kRowWarps / a.stages + tid;
    if (tid < kAskedAhead && task < count) {
      const int matrix = tasks[task].matrix, shared = matrix == a.experts;
      const std::int64_t tile =
          static_cast<std::int64_t>(shared ? 0 : matrix) * a.tiles + blockIdx.x;
      prefetch(a.codes[shared] + tile * a.stages * kCodeBytes, a.stages * kCodeBytes);
      prefetch(a.scales[shared] + tile * a.groups * kScaleBytes, a.groups * kScaleBytes);
    }
  }
  await_last();
  Source act;
  act.x = a.act, act.k = a.stages * kStage;
  plain_rows(act, rows, warp, kRowWarps, a.int8, {words}, meta);
  block_sync();

  int at = 0;
#pragma unroll 1
  for (int unit = warp; unit < count * kMaxPieces; unit += kRowWarps) {
    const Task& task = tasks[unit / kMaxPieces];
    const int piece = unit % kMaxPieces;
    const uint4* x[Octets];  // as in gemv.cuh
    const RowMeta* y[Octets];
#pragma unroll
    for (int o = 0; o < Octets; ++o) {
      const int in = 4 * o + lane / 8, of = 4 * o + lane % 4;
      x[o] = reinterpret_cast<const uint4*>(words) +
             task.x[in < task.rows ? in : 0] * a.stages * 8 + lane / 4 % 2 * 4 + lane % 4;
      y[o] = meta + task.x[of < task.rows ? of : 0] * a.stages;
    }
    float acc[Octets][2] = {};
#pragma unroll 1
    for (int s = piece * a.each; s < (piece + 1) * a.each; ++s) {
      copy_async_wait<kRing - 1>();
      warp_sync();
      const char* slot = ring.slot + at * kSlotBytes;
      const char *codes = slot + lane * 16, *scales = slot + kCodeBytes + lane / 4 * 4;
      if (Octets == 1 || task.rows > kMaxRows / 2) {
        add_stage<Octets, Groups>(codes, scales, x, y, s, acc);
      } else {  // most experts have a row or two
        const uint4* const first[] = {x[0]};
        const RowMeta* const of[] = {y[0]};
        float to[1][2] = {{acc[0][0], acc[0][1]}};
        add_stage<1, Groups>(codes, scales, first, of, s, to);
        acc[0][0] = to[0][0], acc[0][1] = to[0][1];
      }
      warp_sync();  // all have read the slot
      ring.bring(a, tasks);
      at = at + 1 < kRing ? at + 1 : 0;
    }
#pragma unroll
    for (int o = 0; o < Octets; ++o) {
      const int m = 4 * o + lane % 4;
      if (m >= task.rows) continue;
      float* to = sums + (task.y[m] * kMaxPieces + piece) * kPiecePitch + lane / 4;
      to[0] = 0.0f + acc[o][0], to[8] = 0.0f + acc[o][1];
    }
  }
  block_sync();
  // A thread a token, column and piece: pieces are 4 lanes apart.
  for (int i = tid; i < a.m * kTile * kMaxPieces; i += kRowThreads) {
    const int token = i / (kTile * kMaxPieces), piece = lane / 4,
              column = i / 32 % 4 * 4 + lane % 4, c = static_cast<int>(blockIdx.x) * kTile + column;
    const auto part = [&](int row) {
      return sums[(row * kMaxPieces + piece) * kPiecePitch + column];
    };
    float sum = 0;
    int good = 1;
#pragma unroll 4
    for (int s = token * a.k; s < (token + 1) * a.k; ++s) {
      sum = fmaf(weights[s], part(s), sum);
      good &= is_good[s];
    }
    sum = fmaf(weights[pairs + token], part(pairs + token), sum);
    for (int n = 4; n < 32; n *= 2) sum = sum + shuffle_xor(sum, n);
    if (piece == 0 && c < a.n)
      a.y[static_cast<std::int64_t>(token) * a.n + c] = good ? sum : bits_float(0x7fffffff);
  }
}

std::size_t bytes(const ExpertsDownArgs& a, int groups) {
  const auto rows = static_cast<std::size_t>(a.m * a.k + a.m);
  return static_cast<std::size_t>(kRowWarps * kRing * slot_bytes(1, groups)) +
         rows * (static_cast<std::size_t>(a.stages) * (128 + sizeof(RowMeta)) +
                 kMaxPieces * kPiecePitch * sizeof(float) + sizeof(float) + sizeof(int) +
                 sizeof(Task));
}

}  // namespace

bool can_experts_down(const Queue& q, const Matrix& w, ExpertsDownArgs& a) {
  a.tiles = w.tiles, a.n = w.n, a.stages = w.stages, a.groups = w.groups;
  const int groups = w.stage_groups();
  a.group_shift = w.record_shift(), a.each = w.stages / kMaxPieces;
  bool even = a.each > 0 && a.each * kMaxPieces == w.stages && segment_count(a.each) == 1;
  for (int i = 0; i < kMaxPieces; ++i) even = even && w.piece_end[i] == (i + 1) * a.each;
  return even && w.pieces == kMaxPieces && w.type == kInt4 && w.scale_bytes == 2 && groups > 0 &&
         a.m * a.k + a.m <= kRowThreads && bytes(a, groups) <= q.shared_limit;
}

void launch_experts_down(const Queue& q, const ExpertsDownArgs& a) {
  const bool wide = a.m > kMaxRows / 2, of_32 = a.groups == 2 * a.stages;
  launch(q, "experts_down",
         of_32  ? wide ? experts_down<2, 2> : experts_down<1, 2>
          : wide ? experts_down<2, 1>
                : experts_down<1, 1>,
         dim3{static_cast<unsigned>(a.tiles)}, kRowThreads, bytes(a, of_32 ? 2 : 1), a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
