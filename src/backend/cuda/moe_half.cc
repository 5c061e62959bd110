// experts in fp16, of a prompt: pairs (token, slot) grouped by expert, up to 64 a block; gate and
// up with SwiGLU, down, then the sum over slots. The shared expert takes all tokens as they lie.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"

namespace nibble::NIBBLE_CUDA_NS {

bool CudaBackend::experts_half(const ExpertsArgs& a) {
  const auto matrix = [](const Weight* w) { return static_cast<const CudaWeight&>(*w).matrix(); };
  const auto m = static_cast<int>(a.m), k = static_cast<int>(a.top_k), pairs = m * k,
             count = static_cast<int>(a.gate->stack()), n = static_cast<int>(a.k);
  const auto grow = [&](const char* name, std::int64_t floats) {
    return scratch<float>(name, static_cast<std::size_t>(floats));
  };
  const auto args = [&](const Weight* first, const Weight* second, float* y, std::int64_t ldy) {
    MultiplyArgs r;
    r.m = m, r.outputs = second != nullptr ? 2 : 1;
    r.out[0] = {matrix(first), nullptr, y, ldy};
    if (second != nullptr) r.out[1].w = matrix(second), r.finish = Finish::SwiGlu;
    return r;
  };
  const std::int64_t width = matrix(a.gate).n, shared_width = matrix(a.shared_gate).n;
  MultiplyArgs up = args(a.gate, a.up, nullptr, width), down = args(a.down, nullptr, nullptr, n),
               shared_up = args(a.shared_gate, a.shared_up, nullptr, shared_width),
               shared_down = args(a.shared_down, nullptr, nullptr, n);
  for (const MultiplyArgs* r : {&up, &down, &shared_up, &shared_down})
    if (!takes_half(*r)) return false;
  float* const act = up.out[0].y = grow("experts' act", pairs * width);
  float* const parts = down.out[0].y = grow("experts' pieces", pairs * std::int64_t{n});
  float* const shared_act = shared_up.out[0].y = grow("shared expert's act", m * shared_width);
  float* const shared_parts = shared_down.out[0].y =
      grow("shared expert's pieces", m * std::int64_t{n});

  const int most = std::min(pairs, count + pairs / kGemmRows);
  auto* const groups = scratch<RowGroup>("groups of pairs", static_cast<std::size_t>(most));
  int* const order = scratch<int>("order of pairs", static_cast<std::size_t>(pairs));
  int* const number = scratch<int>("number of tasks", 2);
  launch_group_rows(q_, a.ids, m, k, count, groups, order, number + 1);
  for (MultiplyArgs* r : {&up, &down}) {
    r->groups = groups, r->order = order, r->task_count = number + 1, r->max_tasks = most;
    r->pairs = r == &up ? k : 1;
  }
  const auto halves = [&](const char* name, const float* x, std::int64_t rows, const Matrix& w) {
    Source s;
    s.x = x, s.k = w.k;
    return half_rows(name, s, rows, w);
  };
  up.fixed = shared_up.fixed = halves("rows in halves", a.x, m, up.out[0].w);
  launch_gemm_half(q_, up);
  launch_gemm_half(q_, shared_up);
  down.fixed = halves("act in halves", act, pairs, down.out[0].w);
  launch_gemm_half(q_, down);
  shared_down.fixed = halves("shared act in halves", shared_act, m, shared_down.out[0].w);
  launch_gemm_half(q_, shared_down);
  launch_mix_rows(q_, {parts, shared_parts, a.ids, a.weights, a.shared, m, k, n, count, a.y});
  return true;
}

}  // namespace nibble::NIBBLE_CUDA_NS
