// router and experts. Pairs (token, slot) are grouped by expert on the device, so that a block
// multiplies up to 8 tokens of an expert at once; the grouping never shows in a bit. Gate and up
// with SwiGLU, rounding of what comes out, down with its pieces apart, then the sum over slots.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

const Matrix& matrix(const Weight* w) { return static_cast<const CudaWeight&>(*w).matrix(); }
bool takes_integers(const Weight* w, Activations a) {
  return is_quantised(w->format().type) && a != Activations::Fp32;
}

}  // namespace

void CudaBackend::router(const RouterArgs& a) {
  check(a);
  LinearOutput outputs[2];
  add_rmsnorm_linear(linear_part(a, outputs));
  launch_top_k(q_, a.logits, static_cast<int>(a.m), static_cast<int>(a.router->format().n),
               static_cast<int>(a.top_k), a.ids, a.weights);
}

void CudaBackend::experts(const ExpertsArgs& a) {
  check(a);
  const auto m = static_cast<int>(a.m), k = static_cast<int>(a.top_k), pairs = m * k,
             count = static_cast<int>(a.gate->stack()), n = static_cast<int>(a.k);
  const auto grow = [&](const char* name, std::int64_t floats) {
    return scratch<float>(name, static_cast<std::size_t>(floats));
  };
  const int most = std::min(pairs, count + pairs / kMaxRows);
  Task* const up = scratch<Task>("tasks of gate and up", static_cast<std::size_t>(most));
  Task* const down = scratch<Task>("tasks of down", static_cast<std::size_t>(most));
  int* const tasks = scratch<int>("number of tasks", 1);
  launch_group(q_, a.ids, m, k, count, up, down, tasks);

  const auto run = [&](const MultiplyArgs& r, bool fixed) {
    if (fixed && can_gemv(q_, r))
      launch_gemv(q_, r);
    else
      launch_multiply(q_, r, fixed);
  };
  // Two matrices times rows of x -> silu(gate) up [rows, width]; task: of the routed ones.
  const auto widen = [&](const Weight* gate, const Weight* w_up, const Task* task, float* act,
                         int rows, const float* x, const Fixed& fixed) {
    const auto width = static_cast<std::int64_t>(matrix(gate).n);
    MultiplyArgs r;
    r.source.x = x, r.source.k = n, r.m = m, r.int8 = a.activations == Activations::Int8;
    r.tasks = task, r.task_count = task != nullptr ? tasks : nullptr, r.max_tasks = most,
    r.task_rows = m;
    r.fixed = fixed, r.real = x;
    const bool kind[] = {takes_integers(gate, a.activations), takes_integers(w_up, a.activations)};
    r.out[0] = {matrix(gate), nullptr, act, width}, r.out[1] = {matrix(w_up), nullptr, nullptr, 0};
    if (kind[0] == kind[1]) {
      r.outputs = 2, r.finish = Finish::SwiGlu;
      return run(r, kind[0]);
    }
    float* const both[] = {grow("gate", rows * width), grow("up", rows * width)};
    for (int i = 0; i < 2; ++i) {  // no launch takes both kinds
      MultiplyArgs one = r;
      one.out[0] = {matrix(i == 0 ? gate : w_up), nullptr, both[i], width}, one.outputs = 1;
      run(one, kind[i]);
    }
    launch_swiglu(q_, both[0], both[1], rows * width, act);
  };
  const auto narrow = [&](const Weight* w, const Task* task, const char* name, const float* act,
                          int rows, float* parts) {
    MultiplyArgs r;
    const Matrix& d = matrix(w);
    const bool fixed = takes_integers(w, a.activations);
    r.source.x = act, r.source.k = d.k, r.m = rows, r.int8 = a.activations == Activations::Int8;
    r.tasks = task, r.task_count = task != nullptr ? tasks : nullptr, r.max_tasks = most,
    r.task_rows = m;
    r.out[0] = {d, nullptr, parts, n}, r.outputs = 1, r.finish = Finish::Pieces;
    if (fixed) {
      r.fixed = fixed_rows(name, rows, d);
      launch_prepare(q_, r.source, rows, r.int8, d, r.fixed, nullptr);
    } else {
      r.real = act;
    }
    run(r, fixed);
  };

  const Matrix& g = matrix(a.gate);  // blocks depend on K alone: the shared expert's too
  Source x;
  x.x = a.x, x.k = n;
  Fixed fixed;
  const Weight* const wide[] = {a.gate, a.up, a.shared_gate, a.shared_up};
  if (std::any_of(wide, wide + 4,
                  [&](const Weight* w) { return takes_integers(w, a.activations); })) {
    fixed = fixed_rows("rounded rows", m, g);
    launch_prepare(q_, x, m, a.activations == Activations::Int8, g, fixed, nullptr);
  }
  const std::int64_t width = g.n, shared_width = matrix(a.shared_gate).n,
                     part = std::int64_t{kMaxPieces} * n;
  float* const act = grow("experts' act", pairs * width);
  float* const shared_act = grow("shared expert's act", m * shared_width);
  float* const parts = grow("experts' pieces", pairs * part);
  float* const shared_parts = grow("shared expert's pieces", m * part);
  widen(a.gate, a.up, up, act, pairs, a.x, fixed);
  widen(a.shared_gate, a.shared_up, nullptr, shared_act, m, a.x, fixed);
  narrow(a.down, down, "rounded act", act, pairs, parts);
  narrow(a.shared_down, nullptr, "rounded shared act", shared_act, m, shared_parts);
  launch_mix(q_, {parts, shared_parts, a.ids, a.weights, a.shared, m, k, n, count, a.y});
}

}  // namespace nibble::NIBBLE_CUDA_NS
