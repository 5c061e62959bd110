// y = W x for up to 8 rows of x and weights in fp32, fp16 or bf16, x in fp32: what checkpoints keep
// of a router, a recurrence's gates. The bits of multiply.cu.
//
// What a stage of 64 columns adds to a row's sum is a chain of 64 additions, and stages' chains
// need nothing of each other: a thread has one, of every row of x. So a block of 512 threads takes
// 1 to 16 rows of a tile, however many make one chain a thread, and a matrix of few rows has blocks
// enough. Weights, which nobody writes, are asked for before the wait; the block makes x
// itself (residual + delta, RMSNorm). Then a thread a (row of W, row of x, segment) adds its stages
// in ascending order, and one a (row of W, row of x) the segments. Of the router's products the
// block that ends last makes the choice of experts (gemv.cuh). Aliasing: ops/linear.h.
#include <type_traits>

#include "backend/cuda/stream.cuh"
#include "backend/cuda/top_k.cuh"
#include "ops/pieces.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kPitch = kStage + 4;  // of a stage of x, so that those of a warp lie in other banks

struct PlainArgs {
  Source source;
  Output out[kMaxOutputs];
  int outputs, m, stages, jobs, row_shift, segments, columns;  // a job: 1 << row_shift rows
  Choice choice;
};

// Column j of a part, 16 bytes.
template <int Type>
__device__ __forceinline__ float weight_at(const uint4& part, int j) {
  const std::uint32_t words[4] = {part.x, part.y, part.z, part.w};
  if constexpr (Type == kF32) {
    return bits_float(static_cast<int>(words[j]));
  } else {
    const auto half = static_cast<std::uint16_t>(words[j / 2] >> 16 * (j % 2));
    return Type == kF16 ? from_half(half) : from_bf16(half);
  }
}

template <int Type, int Rows>
__global__ void __launch_bounds__(kRowThreads, Rows == 1 ? 2 : 1)
    gemv_plain(const __grid_constant__ PlainArgs a) {
  constexpr int kEach = Type == kF32 ? 4 : 8, kParts = kStage / kEach;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  start_next();
  float* const x = reinterpret_cast<float*>(shared_memory());   // [m][stage] kPitch
  float* const sums = x + a.m * a.stages * kPitch;              // [m][row][stage]
  float* const parts = sums + a.m * (a.stages << a.row_shift);  // [m][row][segment]
  float* const scratch = parts + a.m * (a.segments << a.row_shift);
  const int rows = 1 << a.row_shift, row = tid & (rows - 1), stage = tid >> a.row_shift,
            step = static_cast<int>(gridDim.x);
  const bool has = stage < a.stages;

  const auto output_of = [&](int job) {
    int out = 0;
    while (out + 1 < a.outputs && job >= a.out[out + 1].first) ++out;
    return out;
  };
  // Of this thread's stage, part 0 of the job's first row; a part is kTile further on.
  const auto weights_of = [&](int job) {
    const Output& o = a.out[output_of(job)];
    const int first = (job - o.first) << a.row_shift;
    return reinterpret_cast<const uint4*>(o.codes) +
           (static_cast<std::int64_t>(first / kTile) * a.stages + (has ? stage : 0)) *
               (kParts * kTile) +
           first % kTile;
  };
  const auto ask = [&](int job) {
    constexpr int kLine = 8;  // rows of a part in one line
    const uint4* from = weights_of(job);
    const int lines = rows > kLine ? 2 : 1;  // a part
#pragma unroll 1
    for (int i = row; has && i < kParts * lines; i += rows)
      prefetch_line(from + i / lines * kTile + i % lines * kLine);
  };
  int job = static_cast<int>(blockIdx.x);
  ask(job);
  const auto make = [&](auto count) {
    constexpr int kCount = count;
    NormRows<kCount, true> norm(a.source);
    norm.ready(a.source);
    const auto slice = [&] { return Slice{a.columns * job, a.columns * (job + 1)}; };
    const bool stores = norm.has(slice());
    await_last();
#pragma unroll 1
    for (int r = 0; r < a.m; ++r) {
      float2 v[kCount];
      norm.normalise(a.source, r, r, stores, slice, scratch, v);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i >= norm.count) break;
        float* to = x + (r * a.stages + warp + i * kRowWarps) * kPitch + lane;
        to[0] = v[i].x, to[32] = v[i].y;
      }
    }
  };
  if (a.source.kind == Source::Plain) {
    await_last();
    for (int i = tid; i < a.m * a.stages * (kStage / 4); i += kRowThreads)
      *reinterpret_cast<float4*>(x + i / (kStage / 4) * kPitch + i % (kStage / 4) * 4) =
          reinterpret_cast<const float4*>(a.source.x)[i];
  } else if (a.stages <= kFewStages * kRowWarps) {
    make(std::integral_constant<int, kFewStages>{});
  } else {
    make(std::integral_constant<int, kHeldStages>{});
  }

#pragma unroll 1
  for (;;) {
    block_sync();  // x is there; all have read the sums
    if (has) {
      const uint4* const from = weights_of(job) + row;
      float acc[Rows] = {};
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        const uint4 w = from[p * kTile];
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
          if (r >= a.m) break;
          const float* in = x + (r * a.stages + stage) * kPitch + p * kEach;
#pragma unroll
          for (int j = 0; j < kEach; j += 4) {
            const float4 v = *reinterpret_cast<const float4*>(in + j);
            acc[r] = fmaf(weight_at<Type>(w, j), v.x, acc[r]);
            acc[r] = fmaf(weight_at<Type>(w, j + 1), v.y, acc[r]);
            acc[r] = fmaf(weight_at<Type>(w, j + 2), v.z, acc[r]);
            acc[r] = fmaf(weight_at<Type>(w, j + 3), v.w, acc[r]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < Rows; ++r)
        if (r < a.m) sums[((r << a.row_shift) + row) * a.stages + stage] = acc[r];
    }
    const int now = job;
    job += step;
    if (job < a.jobs) ask(job);
    block_sync();
    for (int i = tid; i < a.m * a.segments << a.row_shift; i += kRowThreads) {
      const int of = i / a.segments, segment = i - of * a.segments;
      const int first = segment == 0 ? 0 : segment_end(a.stages, segment - 1),
                last = segment_end(a.stages, segment);
      const float* in = sums + of * a.stages;
      float sum = 0;
      for (int s = first; s < last; ++s) sum = in[s] + sum;
      parts[i] = sum;
    }
    block_sync();
    const Output& o = a.out[output_of(now)];
    for (int i = tid; i < a.m << a.row_shift; i += kRowThreads) {
      const int m = i >> a.row_shift, n = ((now - o.first) << a.row_shift) + (i & (rows - 1));
      float sum = 0;
      for (int j = 0; j < a.segments; ++j) sum = sum + parts[i * a.segments + j];
      if (n >= o.n) continue;
      o.y[m * o.ldy + n] = o.bias != nullptr ? sum + o.bias[n] : sum;
    }
    if (job >= a.jobs) break;
  }
  if (a.choice.k > 0) choose_at_last(a.choice, a.out[0].y, a.out[0].ldy, a.out[0].n, a.m);
}

// log2 of a job's rows: as many as make one chain a thread.
int row_shift(int stages) {
  int shift = 0;
  while (shift < 4 && stages << (shift + 1) <= kRowThreads) ++shift;
  return shift;
}
std::size_t bytes(const MultiplyArgs& a) {
  const int stages = a.out[0].w.stages,
            floats =
                a.m * (stages * kPitch + ((stages + segment_count(stages)) << row_shift(stages)));
  return static_cast<std::size_t>(floats + 2 * kRowWarps) * sizeof(float);
}

template <int Type>
void (*kernel_for(int m))(PlainArgs) {
  return m == 1 ? gemv_plain<Type, 1> : gemv_plain<Type, kMaxRows>;
}

}  // namespace

bool can_gemv_plain(const Queue& q, const MultiplyArgs& a) {
  const Matrix& first = a.out[0].w;
  for (int i = 0; i < a.outputs; ++i) {
    const Matrix& w = a.out[i].w;
    if (w.type != first.type || w.pieces != 1) return false;
  }
  return first.type >= kF16 && first.regular && a.finish == Finish::Store && a.tasks == nullptr &&
         a.ids == nullptr && a.m <= kMaxRows && first.stages <= kRowThreads &&
         a.source.kind <= Source::Norm && rows_in_registers(a.source) && bytes(a) <= q.shared_limit;
}

void launch_gemv_plain(const Queue& q, const MultiplyArgs& from) {
  const Matrix& w = from.out[0].w;
  PlainArgs a{};
  a.source = from.source, a.m = from.m, a.stages = w.stages, a.choice = from.choice;
  a.outputs = from.outputs, a.row_shift = row_shift(w.stages);
  a.segments = segment_count(w.stages);
  for (int i = 0; i < a.outputs; ++i) {
    const Product& p = from.out[i];
    a.out[i] = {p.w.codes, nullptr, p.bias, p.y, p.ldy, p.w.n, a.jobs};
    a.jobs += (p.w.n + (1 << a.row_shift) - 1) >> a.row_shift;
  }
  const int most = q.blocks > 0 ? q.blocks : q.multiprocessors,
            blocks = a.jobs < most ? a.jobs : most;
  a.columns = (a.source.k + blocks - 1) / blocks;
  const auto kernel = w.type == kF32   ? kernel_for<kF32>(a.m)
                      : w.type == kF16 ? kernel_for<kF16>(a.m)
                                       : kernel_for<kBF16>(a.m);
  std::size_t shared = bytes(from);
  if (a.choice.k > 0) {
    const std::size_t room = static_cast<std::size_t>(a.m) * top_k_bytes(a.out[0].n, a.choice.k);
    if (room > shared) shared = room;
  }
  launch(q, "gemv_plain", kernel, dim3{static_cast<unsigned>(blocks)}, kRowThreads, shared, a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
