// causal_conv, delta_rule and their state.
#include "backend/cuda/cuda_state.h"

namespace nibble::NIBBLE_CUDA_NS {

CudaDeltaState::CudaDeltaState(const DeltaShape& s, const Queue& q, Arena& arena)
    : DeltaState(s), q_(q) {
  check(s);
  const auto slots = static_cast<std::size_t>(s.layers * s.slots);
  conv_ = {slots * conv_size() * sizeof(float), "the convolution state", &arena};
  rule_ = {slots * rule_size() * sizeof(float), "the recurrent state", &arena};
  clear(q_, conv_.get(), conv_.size()), clear(q_, rule_.get(), rule_.size());
}

std::size_t CudaDeltaState::conv_size() const {
  return static_cast<std::size_t>((shape_.conv_kernel - 1) * shape_.channels());
}
std::size_t CudaDeltaState::rule_size() const {
  return static_cast<std::size_t>(shape_.value_heads * blocks() * shape_.key_dim * kTile);
}

DeltaLayer CudaDeltaState::layer(std::int64_t layer) const {
  const auto first = static_cast<std::size_t>(layer * shape_.slots);
  DeltaLayer l{};
  l.conv = conv_.as<float>() + first * conv_size(),
  l.rule = rule_.as<float>() + first * rule_size();
  l.key_heads = static_cast<int>(shape_.key_heads),
  l.value_heads = static_cast<int>(shape_.value_heads);
  l.key_dim = static_cast<int>(shape_.key_dim), l.value_dim = static_cast<int>(shape_.value_dim);
  l.taps = static_cast<int>(shape_.conv_kernel), l.channels = static_cast<int>(shape_.channels());
  l.conv_slot = static_cast<std::int64_t>(conv_size());
  l.rule_slot = static_cast<std::int64_t>(rule_size());
  return l;
}

void CudaDeltaState::copy(std::int64_t from, std::int64_t to) {
  for (std::int64_t i = 0; i < shape_.layers; ++i) {
    const DeltaLayer l = layer(i);
    copy_within(q_, l.conv + to * l.conv_slot, l.conv + from * l.conv_slot,
                conv_size() * sizeof(float));
    copy_within(q_, l.rule + to * l.rule_slot, l.rule + from * l.rule_slot,
                rule_size() * sizeof(float));
  }
}

void CudaDeltaState::read(std::int64_t at, std::int64_t slot, std::int64_t head, float* s) const {
  const DeltaLayer l = layer(at);
  std::vector<float> all(static_cast<std::size_t>(blocks() * shape_.key_dim * kTile));
  copy_out(q_, all.data(),
           l.rule + slot * l.rule_slot + head * static_cast<std::int64_t>(all.size()),
           all.size() * sizeof(float));
  for (std::int64_t j = 0; j < shape_.value_dim; ++j)
    for (std::int64_t i = 0; i < shape_.key_dim; ++i)
      s[i * shape_.value_dim + j] =
          all[static_cast<std::size_t>((j / kTile * shape_.key_dim + i) * kTile + j % kTile)];
}

std::unique_ptr<DeltaState> CudaBackend::make_delta_state(const DeltaShape& shape) {
  return std::make_unique<CudaDeltaState>(shape, q_, arena_);
}

ConvArgs CudaBackend::conv_args(const CausalConvArgs& a) {
  const auto& state = static_cast<const CudaDeltaState&>(*a.state);
  row_runs("causal_conv", a.rows, a.m, state.shape());
  return {a.u, a.weight, static_cast<int>(a.m), places(a.rows, a.m), state.layer(a.layer), a.y};
}
void CudaBackend::causal_conv(const CausalConvArgs& a) {
  check(a);
  launch_conv(q_, conv_args(a));
}

void CudaBackend::delta_rule(const DeltaRuleArgs& a) {
  check(a);
  const auto& state = static_cast<const CudaDeltaState&>(*a.state);
  const std::vector<RowRun> runs = row_runs("delta_rule", a.rows, a.m, state.shape());
  const DeltaLayer layer = state.layer(a.layer);
  const auto m = static_cast<int>(a.m);
  const bool chunks = a.activations == Activations::Half && can_delta_rule_rows(layer);
  const std::size_t bytes = chunks ? rule_rows_scratch(layer, m) : rule_scratch(layer, m);
  void* const scratch = bytes > 0 ? scratch_bytes("inputs of the delta rule", bytes) : nullptr;
  const RuleArgs args{a.qkv, a.a,  a.b, a.a_log, a.dt_bias, a.eps, m, places(a.rows, a.m),
                      layer, a.out};
  if (!chunks) return launch_delta_rule(q_, args, scratch);
  std::vector<RowSpan> spans;
  for (const RowRun& r : runs)
    spans.push_back({static_cast<int>(r.first), static_cast<int>(r.count)});
  launch_delta_rule_rows(q_, args, spans.data(), static_cast<int>(spans.size()), scratch);
}

bool CudaBackend::can_step(const DeltaState& state) {
  return state.shape().key_dim == kDeltaStepDim && state.shape().value_dim == kDeltaStepDim;
}
void CudaBackend::delta_step(const DeltaRuleLinearArgs& a, const Fixed& fixed) {
  const DeltaRuleArgs& r = a.rule;
  const auto& state = static_cast<const CudaDeltaState&>(*r.state);
  row_runs("delta_rule", r.rows, r.m, state.shape());
  launch_delta_step(
      q_, {{r.qkv, r.a, r.b, r.a_log, r.dt_bias, r.eps, static_cast<int>(r.m), places(r.rows, r.m),
            state.layer(r.layer), r.out},
           a.linear.z,
           a.linear.weight,
           a.linear.eps,
           a.linear.activations == Activations::Int8,
           fixed,
           divider(static_cast<int>(state.shape().value_heads / state.shape().key_heads))});
}

}  // namespace nibble::NIBBLE_CUDA_NS
