// linear, add_rmsnorm_linear, gated_rmsnorm_linear: which launches, in which plan.
//
// Of few rows every block prepares x itself where it fits in shared memory, or, of five to eight, a
// block a row for all (one launch); else rows are prepared once before. Which is faster is measured
// (plan.cc), and a matter of cost only: the bits are the same.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

const Matrix& matrix(const LinearOutput& o) {
  return static_cast<const CudaWeight&>(*o.w).matrix();
}
bool takes_integers(const LinearOutput& o, Activations a) {
  return is_quantised(o.w->format().type) && a != Activations::Fp32;
}

// Where nothing is measured. A block's own preparation costs each of them what one prepass costs
// once, or less: a prepass takes a row under a norm in one block, other rows in many.
bool worth_fusing(const Source& s, std::int64_t m) {
  return m * s.k <= (s.kind == Source::Norm ? 16384 : 2048);
}

// So many values of x are better rounded by pieces.
constexpr std::int64_t kManyValues = 4096;

}  // namespace

std::uint64_t* CudaBackend::turns(int blocks, int m) {
  const int of = (blocks - 1) * (kMaxRows / 2) + m - kMaxRows / 2 - 1;
  return turns_.as<std::uint64_t>() + (of * kTurns + turns_given_++ % kTurns) * 2;
}

Fixed CudaBackend::fixed_rows(const char* name, std::int64_t rows, const Matrix& w, bool straight) {
  const auto cells = static_cast<std::size_t>(rows * w.stages);
  char* p = scratch<char>(name, cells * (128 + sizeof(RowMeta)));
  return {p, reinterpret_cast<RowMeta*>(p + cells * 128), straight};
}

void CudaBackend::prepare(const Source& s, int m, int int8, const Matrix& w, const Fixed& fixed,
                          float* real) {
  const std::size_t room = prepare_room(q_, s, m);
  launch_prepare(q_, s, m, int8, w, fixed, real,
                 room > 0 ? scratch<float>("long rows", room) : nullptr);
}

bool CudaBackend::takes_half(const MultiplyArgs& a) const {
  const auto row = static_cast<std::size_t>(a.out[0].w.k) * sizeof(float);
  return q_.warpgroups && row + (4 << 10) <= q_.shared_limit && can_gemm_half(a);
}

Fixed CudaBackend::half_rows(const char* name, const Source& s, std::int64_t rows,
                             const Matrix& w) {
  const auto words = static_cast<std::size_t>(rows * w.stages) * 128;
  char* const p = scratch<char>(name, words + static_cast<std::size_t>(rows) * sizeof(float));
  const Fixed to{p, nullptr, false, reinterpret_cast<float*>(p + words)};
  launch_prepare_half(q_, s, static_cast<int>(rows), w.stages, to);
  return to;
}

// Outputs that all take integers, or all fp32.
void CudaBackend::multiply_kind(Source s, std::int64_t m, Activations activations,
                                std::span<const LinearOutput> outputs, Epilogue epilogue, Plan plan,
                                bool fixed, const After& after) {
  MultiplyArgs a;
  a.source = s, a.m = static_cast<int>(m), a.int8 = activations == Activations::Int8;
  for (const LinearOutput& o : outputs) a.out[a.outputs++] = {matrix(o), o.bias, o.y, o.ldy};
  a.finish = epilogue == Epilogue::SwiGlu ? Finish::SwiGlu : Finish::Store;
  const Matrix& w = a.out[0].w;
  if (fixed && activations == Activations::Half && takes_half(a)) {
    a.fixed = half_rows("rows in halves", s, m, w);
    return launch_gemm_half(q_, a);
  }
  const bool as_it_is = !fixed && s.kind == Source::Plain;  // fp32, and nothing to make of x
  const bool gemv = fixed && can_gemv(q_, a), gemm = fixed && m > kMaxRows && can_gemm(a);
  if (fixed && plan == Plan::Auto && m <= kMaxRows && m * s.k >= kManyValues &&
      can_gemv_pieces(q_, a))
    return launch_gemv_pieces(q_, a, scratch<float>("sums of pieces", gemv_pieces_scratch(a)),
                              arrived_.as<int>() + 1);
  const Choice& choice = after.choice;
  const bool plain = !fixed && plan != Plan::Prepass && can_gemv_plain(q_, a);
  const bool with_choice = choice.k > 0 && (plain || gemv) && can_choose(a, choice);
  if (with_choice) a.choice = choice;
  const int sharers = gemv && !with_choice ? gemv_pairs_blocks(q_, a) : 0;
  if (plain) {
    launch_gemv_plain(q_, a);
    if (after.conv.y != nullptr) launch_conv(q_, after.conv);
    if (choice.k > 0 && !with_choice) launch_top_k(q_, a.out[0].y, a.m, w.n, choice);
    return;
  }
  const auto run = [&](bool fused) {
    MultiplyArgs r = a;
    if (fused && sharers > 0) {
      r.fixed = fixed_rows("rounded rows", m, w, false);
      return launch_gemv_pairs(q_, r, turns(sharers, r.m));
    }
    if (as_it_is) {
      r.real = s.x;
    } else if (!fused) {
      if (fixed)
        r.fixed = fixed_rows("rounded rows", m, w, gemm && q_.warpgroups);
      else
        r.real = scratch<float>("prepared rows", static_cast<std::size_t>(m * w.k));
      prepare(s, r.m, r.int8, w, r.fixed, const_cast<float*>(r.real));
    }
    if (gemv)
      launch_gemv(q_, r);
    else if (gemm)
      launch_gemm(q_, r, scratch<float>("sums of pieces", gemm_scratch(r)));
    else
      launch_multiply(q_, r, fixed);
  };
  bool fused = plan != Plan::Prepass && !as_it_is &&
               (sharers > 0 || (gemv ? can_fuse_gemv(q_, a) : can_fuse(q_, a, fixed)));
  if (fused && plan == Plan::Auto) {
    PlanKey key{m, s.k, s.kind, s.other != nullptr, fixed, a.int8, static_cast<int>(a.finish)};
    for (int i = 0; i < a.outputs; ++i)
      for (const std::int64_t x : {a.out[i].w.n, a.out[i].w.type, a.out[i].w.group_shift})
        key.push_back(x);
    fused = is_fused_faster(key, worth_fusing(s, m), run);
  }
  if (gemv) a.conv = after.conv;  // now that nothing is run again
  run(fused);
  if (!gemv && after.conv.y != nullptr) launch_conv(q_, after.conv);
  if (choice.k > 0 && !with_choice) launch_top_k(q_, a.out[0].y, a.m, w.n, choice);
}

void CudaBackend::multiply(const Source& s, std::int64_t m, Activations activations,
                           std::span<const LinearOutput> outputs, Epilogue epilogue, Plan plan,
                           const After& after) {
  std::vector<LinearOutput> by_kind[2];  // fp32, integers
  for (const LinearOutput& o : outputs) by_kind[takes_integers(o, activations)].push_back(o);
  const bool mixed = !by_kind[0].empty() && !by_kind[1].empty();
  if (epilogue == Epilogue::SwiGlu && mixed) {  // no launch takes both: gate and up, then SwiGLU
    const std::int64_t n = outputs[0].w->format().n;
    const auto count = static_cast<std::size_t>(m * n);
    LinearOutput both[2] = {outputs[0], outputs[1]};
    float* const gate = scratch<float>("gate", count);
    float* const up = scratch<float>("up", count);
    float* const y = scratch<float>("gate x up", count);
    both[0].y = gate, both[1].y = up, both[0].ldy = both[1].ldy = n;
    multiply(s, m, activations, both, Epilogue::None, plan);
    launch_swiglu(q_, gate, up, m * n, y);
    for (std::int64_t i = 0; i < m; ++i)
      copy_within(q_, outputs[0].y + i * outputs[0].ldy, y + i * n,
                  static_cast<std::size_t>(n) * sizeof(float));
    return;
  }
  Source once = s;
  for (const bool fixed : {true, false}) {
    if (by_kind[fixed].empty()) continue;
    const bool first = by_kind[fixed][0].y == outputs[0].y;
    multiply_kind(once, m, activations, by_kind[fixed], epilogue, plan, fixed,
                  first ? after : After{});
    once.residual_out = once.normed = nullptr;  // written by the first launch
  }
}

void CudaBackend::linear(const LinearArgs& a) {
  check(a);
  Source s;
  s.x = a.x, s.k = static_cast<int>(a.k);
  multiply(s, a.m, a.activations, a.outputs, a.epilogue, Plan::Auto);
}

void CudaBackend::add_rmsnorm_linear(const AddRmsNormLinearArgs& a) {
  check(a);
  norm_linear(a, {});
}
// Measured: of up to 4 rows a launch of its own is faster, which comes while the products last and
// keeps the delta rule's blocks from doing so.
void CudaBackend::add_rmsnorm_linear_conv(const AddRmsNormLinearArgs& a, const CausalConvArgs& c) {
  if (c.m <= kMaxRows / 2 || c.m > kMaxRows || a.activations == Activations::Half ||
      !own_slots({c.rows, static_cast<std::size_t>(c.m)}))
    return Backend::add_rmsnorm_linear_conv(a, c);
  check(a, c);
  norm_linear(a, {.conv = conv_args(c)});
}
void CudaBackend::norm_linear(const AddRmsNormLinearArgs& a, const After& after) {
  Source s;
  s.kind = Source::Norm, s.x = a.residual, s.other = a.delta, s.weight = a.weight;
  s.eps = a.eps, s.offset = a.unit_offset ? 1.0f : 0.0f, s.k = static_cast<int>(a.k);
  s.residual_out = a.residual_out, s.normed = a.normed;
  if (a.outputs.empty()) return prepare(s, static_cast<int>(a.m), 0, {}, {}, nullptr);
  multiply(s, a.m, a.activations, a.outputs, a.epilogue, a.plan, after);
}

void CudaBackend::gated_rmsnorm_linear(const GatedRmsNormLinearArgs& a) {
  check(a);
  Source s;
  s.kind = Source::GatedNorm, s.x = a.o, s.other = a.z, s.weight = a.weight, s.eps = a.eps;
  s.k = static_cast<int>(a.heads * a.dim), s.dim = static_cast<int>(a.dim);
  multiply(s, a.m, a.activations, a.outputs, Epilogue::None, Plan::Auto);
}

// Of few rows the delta rule's launch leaves them rounded, where gemv takes them.
void CudaBackend::delta_rule_linear(const DeltaRuleLinearArgs& a) {
  check(a);
  const GatedRmsNormLinearArgs& l = a.linear;
  MultiplyArgs r;
  r.source.k = static_cast<int>(l.heads * l.dim), r.m = static_cast<int>(l.m);
  r.int8 = l.activations == Activations::Int8;
  bool fixed = l.activations != Activations::Half;
  for (const LinearOutput& o : l.outputs) {
    fixed = fixed && takes_integers(o, l.activations);
    r.out[r.outputs++] = {matrix(o), o.bias, o.y, o.ldy};
  }
  if (!fixed || l.m > kMaxRows || !can_gemv(q_, r) || !can_step(*a.rule.state))
    return Backend::delta_rule_linear(a);
  r.fixed = fixed_rows("rounded rows", l.m, r.out[0].w, false);
  delta_step(a, r.fixed);
  launch_gemv(q_, r);
}

}  // namespace nibble::NIBBLE_CUDA_NS
