// Rows prepared once, for many blocks: the prepass of the fused operation, and the input of a
// linear with many rows. One block a row, which it holds in shared memory (K floats) where it fits.
//
// Also the row-wise odds and ends: SwiGLU of two matrices that one launch could not take together,
// embedding, gather.
#include "backend/cuda/rows.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kRowThreads)
    prepare(Source s, int int8, const Stage* plan, int stages, Fixed fixed, float* real,
            float* room) {
  start_next(), await_last();
  const int row = static_cast<int>(blockIdx.x);
  auto* const shared = reinterpret_cast<float*>(shared_memory());
  float* h = room != nullptr ? room + static_cast<std::int64_t>(row) * s.k : shared;
  float* inv = room != nullptr ? shared : shared + s.k;
  load_rows(s, row, 1, h, inv, {0, s.k});
  if (fixed.words != nullptr) round_rows(h, 1, s.k, int8, plan, stages, fixed, row);
  if (real != nullptr)
    for (int c = static_cast<int>(threadIdx.x); c < s.k; c += kRowThreads)
      real[static_cast<std::int64_t>(row) * s.k + c] = h[c];
}

// The same, rounded, for plans whose stages follow each other. Under a norm a block a row (Stages:
// a warp's at most), else one for some units of all.
template <int Stages>
__global__ void __launch_bounds__(kRowThreads)
    prepare_norm(Source s, int int8, int stages, Fixed fixed) {
  start_next();
  NormRows<Stages, true> rows(s);
  rows.ready(s);
  await_last();
  const std::int64_t row = blockIdx.x;
  rows.template make<true>(
      s, row, 0, int8, true,
      [&] {
        return Slice{0, s.k};
      },
      {static_cast<char*>(fixed.words) + row * stages * 128, fixed.straight},
      fixed.meta + row * stages, reinterpret_cast<float*>(shared_memory()));
}
template <int HeadStages>  // 0: plain rows
__global__ void __launch_bounds__(kRowThreads)
    prepare_units(Source s, int m, int int8, Fixed fixed) {
  start_next(), await_last();
  const Words words{static_cast<char*>(fixed.words), fixed.straight};
  const int warp = static_cast<int>(blockIdx.x * kRowWarps + threadIdx.x / 32),
            warps = static_cast<int>(gridDim.x) * kRowWarps;
  if constexpr (HeadStages > 0)
    gated_heads<HeadStages>(s, warp, m * (s.k / s.dim), warps, int8, words, fixed.meta);
  else
    plain_rows(s, m, warp, warps, int8, words, fixed.meta);
}

__global__ void __launch_bounds__(kThreads)
    swiglu(const float* gate, const float* up, std::int64_t n, float* y) {
  start_next(), await_last();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) y[i] = silu(gate[i]) * up[i];
}

// One value of a matrix, column j of 64 of a stage.
__device__ float element(const Matrix& w, const std::uint8_t* stage, const Stage& p,
                         const std::uint8_t* records, int row, int j) {
  if (w.type >= kF16) {
    const int per = w.type == kF32 ? 4 : 8, bytes = 16 / per;
    const std::uint8_t* at = stage + (j / per * kTile + row) * 16 + j % per * bytes;
    if (w.type == kF32) return *reinterpret_cast<const float*>(at);
    const auto bits = *reinterpret_cast<const std::uint16_t*>(at);
    return w.type == kF16 ? from_half(bits) : from_bf16(bits);
  }
  const int chunk = j / 32, half = j / 16 % 2, t = j % 16 / 4, byte = j % 4;
  const int lane = row % 8 * 4 + t;
  const int group = p.group + (p.units == 2 ? chunk : 0);
  const std::uint8_t* record = records + static_cast<std::int64_t>(group) * w.record_bytes;
  const auto scale = [&](int i) {
    return w.scale_bytes == 2 ? from_half(reinterpret_cast<const std::uint16_t*>(record)[i])
                              : reinterpret_cast<const float*>(record)[i];
  };
  if (w.type == kInt8) {
    const auto code =
        static_cast<std::int8_t>(stage[chunk * 512 + lane * 16 + (half * 2 + row / 8) * 4 + byte]);
    return static_cast<float>(code) * scale(scale_place(row));
  }
  const int both = stage[lane * 16 + (chunk * 2 + row / 8) * 4 + byte];
  const int code = half == 0 ? both & 15 : both >> 4;
  if (w.type == kInt4) return static_cast<float>(code - 8) * scale(scale_place(row));
  return static_cast<float>(code) * scale(scale_place(row)) + scale(kTile + scale_place(row));
}

__global__ void __launch_bounds__(kThreads) embedding(Matrix w, const int* ids, float* h) {
  start_next(false), await_last(), let_next();
  const int id = ids[blockIdx.x], tile = id / kTile, row = id % kTile;
  const std::uint8_t* codes = w.codes + static_cast<std::int64_t>(tile) * w.stages * w.stage_bytes;
  const std::uint8_t* records =
      w.scales + static_cast<std::int64_t>(tile) * w.groups * w.record_bytes;
  const int step = static_cast<int>(gridDim.y) * kThreads;
  for (int i = static_cast<int>(blockIdx.y * kThreads + threadIdx.x); i < w.stages * kStage;
       i += step) {
    const int s = i / kStage, j = i % kStage;
    const bool known = w.regular && w.group_shift >= 0;  // a plan of one load less
    const Stage p = known ? Stage{s * kStage, 2, 1, s >> w.group_shift} : w.plan[s];
    const int c = p.column + j;
    if (j < 32 * p.chunks && c < w.k)
      h[static_cast<std::int64_t>(blockIdx.x) * w.k + c] =
          element(w, codes + static_cast<std::int64_t>(s) * w.stage_bytes, p, records, row, j);
  }
}

__global__ void __launch_bounds__(kThreads)
    gather(const float* src, const int* rows, std::int64_t width, float* dst) {
  start_next(), await_last();
  const std::int64_t from = rows[blockIdx.x] * width, to = blockIdx.x * width;
  for (std::int64_t c = threadIdx.x; c < width; c += kThreads) dst[to + c] = src[from + c];
}

__global__ void __launch_bounds__(kThreads) take(const int* host, int n, int* to) {
  start_next(), await_last();
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) to[i] = load_fresh(host + i);
}

unsigned blocks(std::int64_t n) { return static_cast<unsigned>(n); }
std::size_t inv_bytes(const Source& s) {
  return static_cast<std::size_t>(s.kind == Source::GatedNorm ? s.k / s.dim : 1) * sizeof(float);
}
std::size_t row_bytes(const Source& s) { return static_cast<std::size_t>(s.k) * sizeof(float); }

}  // namespace

std::size_t prepare_room(const Queue& q, const Source& s, int m) {
  const bool fits = row_bytes(s) + inv_bytes(s) <= q.shared_limit;
  return fits ? 0 : static_cast<std::size_t>(m) * static_cast<std::size_t>(s.k);
}
void launch_prepare(const Queue& q, const Source& s, int m, int int8, const Matrix& w,
                    const Fixed& fixed, float* real, float* room) {
  if (w.regular && real == nullptr && fixed.words != nullptr && rows_in_registers(s)) {
    const auto units = [&](auto kernel, int count, int each) {
      launch(q, "prepare", kernel, dim3{blocks((count + each - 1) / each)}, kRowThreads, 0, s, m,
             int8, fixed);
    };
    if (s.kind == Source::Norm)
      return launch(q, "prepare", is_few(s) ? prepare_norm<kFewStages> : prepare_norm<kHeldStages>,
                    dim3{blocks(m)}, kRowThreads, kRowWarps * sizeof(float), s, int8, w.stages,
                    fixed);
    if (s.kind == Source::Plain) return units(prepare_units<0>, m * w.stages, 4 * kRowWarps);
    return units(s.dim == 2 * kStage ? prepare_units<2> : prepare_units<kHeadStages>,
                 m * (s.k / s.dim), kRowWarps);
  }
  launch<Begin::Late>(q, "prepare", prepare, dim3{blocks(m)}, kRowThreads,
                      inv_bytes(s) + (room != nullptr ? 0 : row_bytes(s)), s, int8, w.plan,
                      w.stages, fixed, real, room);
}
void launch_swiglu(const Queue& q, const float* gate, const float* up, std::int64_t n, float* y) {
  launch(q, "swiglu", swiglu, dim3{blocks((n + kThreads - 1) / kThreads)}, kThreads, 0, gate, up, n,
         y);
}
void launch_embedding(const Queue& q, const Matrix& w, const int* ids, int m, float* h) {
  const int runs = (w.stages * kStage + kThreads - 1) / kThreads;
  launch<Begin::After>(q, "embedding", embedding, dim3{blocks(m), blocks(runs)}, kThreads, 0, w,
                       ids, h);
}
void launch_take(const Queue& q, void* to, const void* pinned, std::size_t bytes) {
  launch<Begin::Late>(q, "take", take, dim3{1}, kThreads, 0, static_cast<const int*>(pinned),
                      static_cast<int>(bytes / sizeof(int)), static_cast<int*>(to));
  q.alone = true;
}
void launch_gather(const Queue& q, const float* src, const int* rows, int m, std::int64_t width,
                   float* dst) {
  launch(q, "gather", gather, dim3{blocks(m)}, kThreads, 0, src, rows, width, dst);
}

}  // namespace nibble::NIBBLE_CUDA_NS
