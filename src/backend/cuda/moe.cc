// router and experts. Pairs (token, slot) are grouped by expert on the device, so that a block
// multiplies up to 8 tokens of an expert at once, of many tokens 64; the grouping never shows in a
// bit. Gate and up
// with SwiGLU, rounding of what comes out, down with its pieces apart, then the sum over slots.
#include <algorithm>
#include <utility>

#include "backend/cuda/cuda_backend.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

const Matrix& matrix(const Weight* w) { return static_cast<const CudaWeight&>(*w).matrix(); }
bool takes_integers(const Weight* w, Activations a) {
  return is_quantised(w->format().type) && a != Activations::Fp32;
}
// Whether one launch of gemv takes both.
bool alike(const Weight* a, const Weight* b, Activations activations) {
  const Matrix &v = matrix(a), &w = matrix(b);
  return takes_integers(a, activations) && v.type == w.type && v.n == w.n && v.k == w.k &&
         v.scale_bytes == w.scale_bytes && v.pieces == w.pieces && v.stage_groups() > 0 &&
         v.group_shift == w.group_shift && v.type == kInt4 && v.scale_bytes == 2;
}

// So few that every block rounds them itself.
constexpr int kFewValues = 4608;

}  // namespace

void CudaBackend::router(const RouterArgs& a) {
  check(a);
  LinearOutput outputs[2];
  AddRmsNormLinearArgs linear = linear_part(a, outputs);
  // Which experts a token has is the one thing that rounding could turn over.
  if (linear.activations == Activations::Half) linear.activations = Activations::Int16;
  norm_linear(linear,
              {.choice = {static_cast<int>(a.top_k), a.ids, a.weights, arrived_.as<int>()}});
}

void CudaBackend::experts(const ExpertsArgs& a) {
  check(a);
  if (a.activations == Activations::Half && experts_half(a)) return;
  const auto m = static_cast<int>(a.m), k = static_cast<int>(a.top_k), pairs = m * k,
             count = static_cast<int>(a.gate->stack()), n = static_cast<int>(a.k);
  const auto grow = [&](const char* name, std::int64_t floats) {
    return scratch<float>(name, static_cast<std::size_t>(floats));
  };
  // Of few tokens the shared expert is one expert more, whose weights lie elsewhere.
  const bool together = m <= kMaxRows && alike(a.gate, a.shared_gate, a.activations) &&
                        alike(a.up, a.shared_up, a.activations) &&
                        alike(a.down, a.shared_down, a.activations);
  const int rows = pairs + (together ? m : 0);  // of act and pieces

  const int most = std::min(pairs, count + pairs / kMaxRows) + 1,
            most_groups = std::min(pairs, count + pairs / kGemmRows);
  int* const number = scratch<int>("number of tasks", 2);
  Task *up = nullptr, *down = nullptr;  // for up to 8 rows at once
  const auto task = [&](bool wide) {
    if (up == nullptr) {
      up = scratch<Task>("tasks of gate and up", static_cast<std::size_t>(most));
      down = scratch<Task>("tasks of down", static_cast<std::size_t>(most));
      launch_group(q_, a.ids, m, k, count, together, up, down, number);
    }
    return wide ? up : down;
  };
  RowGroup* groups = nullptr;  // for up to 64
  int* order = nullptr;
  const auto group = [&] {
    if (groups != nullptr) return;
    groups = scratch<RowGroup>("groups of pairs", static_cast<std::size_t>(most_groups));
    order = scratch<int>("order of pairs", static_cast<std::size_t>(pairs));
    launch_group_rows(q_, a.ids, m, k, count, groups, order, number + 1);
  };
  Fixed tokens[2];  // rounded, in both orders: blocks depend on K alone
  const auto rounded = [&](const MultiplyArgs& r, const char* name, bool straight) {
    Fixed& known = tokens[straight];
    if (r.source.x == a.x && known.words != nullptr) return known;
    const Fixed f = fixed_rows(name, r.m, r.out[0].w, straight);
    prepare(r.source, r.m, r.int8, r.out[0].w, f, nullptr);
    return r.source.x == a.x ? known = f : f;
  };

  bool known[2] = {};  // tasks, ids
  // routed: rows of y are pairs; name: of the rounded rows.
  const auto run = [&](MultiplyArgs r, bool fixed, bool routed, const char* name) {
    const bool wide = r.source.x == a.x;  // rows of x are tokens
    if (fixed && m > kMaxRows && can_gemm(r)) {
      if (routed) {
        group();
        r.groups = groups, r.order = order, r.pairs = wide ? k : 1;
        r.task_count = number + 1, r.max_tasks = most_groups;
      }
      r.fixed = rounded(r, wide ? "rows for gemm" : name, q_.warpgroups);
      return launch_gemm(q_, r, nullptr);
    }
    if (routed && fixed && m == 1)
      r.ids = a.ids, r.picks = k, r.experts = count, r.max_tasks = rows;
    if (r.ids != nullptr && !can_gemv(q_, r)) r.ids = nullptr;
    if (routed && r.ids == nullptr)
      r.tasks = task(wide), r.task_count = number, r.max_tasks = most, r.task_rows = m;
    if (!fixed) {
      r.real = r.source.x;
      return launch_multiply(q_, r, false);
    }
    const bool gemv = can_gemv(q_, r);
    if (gemv && routed) r.known = std::exchange(known[r.ids != nullptr], true);
    if (!gemv || r.m * r.source.k > kFewValues || !can_fuse_gemv(q_, r))
      r.fixed = rounded(r, name, false);
    if (gemv)
      launch_gemv(q_, r);
    else
      launch_multiply(q_, r, true);
  };
  // Two matrices times rows of x -> silu(gate) up [rows, width].
  const auto widen = [&](const Weight* gate, const Weight* w_up, bool routed, float* act,
                         int act_rows) {
    const auto width = static_cast<std::int64_t>(matrix(gate).n);
    MultiplyArgs r;
    r.source.x = a.x, r.source.k = n, r.m = m, r.int8 = a.activations == Activations::Int8;
    const bool kind[] = {takes_integers(gate, a.activations), takes_integers(w_up, a.activations)};
    r.out[0] = {matrix(gate), nullptr, act, width}, r.out[1] = {matrix(w_up), nullptr, nullptr, 0};
    if (kind[0] == kind[1]) {
      r.outputs = 2, r.finish = Finish::SwiGlu;
      if (together) {
        r.out[2].w = matrix(a.shared_gate), r.out[3].w = matrix(a.shared_up);
        r.others = 2, r.other_matrix = count;
      }
      return run(r, kind[0], routed, "rounded rows");
    }
    float* const both[] = {grow("gate", act_rows * width), grow("up", act_rows * width)};
    for (int i = 0; i < 2; ++i) {  // no launch takes both kinds
      MultiplyArgs one = r;
      one.out[0] = {matrix(i == 0 ? gate : w_up), nullptr, both[i], width}, one.outputs = 1;
      run(one, kind[i], routed, "rounded rows");
    }
    launch_swiglu(q_, both[0], both[1], act_rows * width, act);
  };
  const auto narrow = [&](const Weight* w, bool routed, const char* name, const float* act,
                          int act_rows, float* parts) {
    MultiplyArgs r;
    r.source.x = act, r.source.k = matrix(w).k, r.m = act_rows;
    r.int8 = a.activations == Activations::Int8;
    r.out[0] = {matrix(w), nullptr, parts, n}, r.outputs = 1, r.finish = Finish::Pieces;
    if (together) r.out[1].w = matrix(a.shared_down), r.others = 1, r.other_matrix = count;
    run(r, takes_integers(w, a.activations), routed, name);
  };

  const std::int64_t width = matrix(a.gate).n, part = std::int64_t{kMaxPieces} * n;
  float* const act = grow("experts' act", rows * width);
  widen(a.gate, a.up, true, act, rows);
  if (together && (known[0] || known[1])) {
    const Matrix &w = matrix(a.down), &other = matrix(a.shared_down);
    const bool by_ids = known[1];
    ExpertsDownArgs d{};
    d.act = act, d.codes[0] = w.codes, d.codes[1] = other.codes;
    d.scales[0] = w.scales, d.scales[1] = other.scales;
    d.tasks = by_ids ? nullptr : task(false), d.task_count = number;
    d.ids = a.ids, d.weights = a.weights, d.shared = a.shared;
    d.m = m, d.k = k, d.experts = count, d.int8 = a.activations == Activations::Int8, d.y = a.y;
    if (can_experts_down(q_, w, d)) return launch_experts_down(q_, d);
  }
  float* const parts = grow("experts' pieces", rows * part);
  float* shared_parts = parts + pairs * part;
  if (!together) {
    shared_parts = grow("shared expert's pieces", m * part);
    float* const shared_act = grow("shared expert's act", m * matrix(a.shared_gate).n);
    widen(a.shared_gate, a.shared_up, false, shared_act, m);
    narrow(a.shared_down, false, "rounded shared act", shared_act, m, shared_parts);
  }
  narrow(a.down, true, "rounded act", act, rows, parts);
  launch_mix(q_, {parts, shared_parts, a.ids, a.weights, a.shared, m, k, n, count, a.y});
}

}  // namespace nibble::NIBBLE_CUDA_NS
