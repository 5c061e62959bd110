// causal_conv and delta_rule: who computes what. A task is 16 channels of a sequence, or a value
// head of a sequence (where those are too few for the threads, a block of 16 of its columns), over
// all of the sequence's rows: every element of the state belongs to one task, and decode, prefill
// and any split of a prompt run the same operations in the same order.
#include <algorithm>
#include <atomic>

#include "backend/cpu/cpu_backend.h"

namespace nibble::cpu {

CpuDeltaState::CpuDeltaState(const DeltaShape& s) : DeltaState(s) {
  check(s);
  const std::int64_t slots = s.layers * s.slots;
  conv_ = {static_cast<std::size_t>(slots * conv_size()), "the convolution state"};
  rule_ = {static_cast<std::size_t>(slots * rule_size()), "the recurrent state"};
}

float* CpuDeltaState::conv(std::int64_t layer, std::int64_t slot) {
  return conv_.data() + (layer * shape_.slots + slot) * conv_size();
}
float* CpuDeltaState::block(std::int64_t layer, std::int64_t slot, std::int64_t head,
                            std::int64_t block) {
  return rule_.data() + (layer * shape_.slots + slot) * rule_size() +
         (head * blocks() + block) * shape_.key_dim * kTile;
}

void CpuDeltaState::copy(std::int64_t from, std::int64_t to) {
  for (std::int64_t layer = 0; layer < shape_.layers; ++layer) {
    std::copy_n(conv(layer, from), conv_size(), conv(layer, to));
    std::copy_n(block(layer, from, 0, 0), rule_size(), block(layer, to, 0, 0));
  }
}

void CpuDeltaState::read(std::int64_t layer, std::int64_t slot, std::int64_t head, float* s) const {
  for (std::int64_t j = 0; j < shape_.value_dim; ++j) {
    const float* from = const_cast<CpuDeltaState*>(this)->block(layer, slot, head, j / kTile);
    for (std::int64_t i = 0; i < shape_.key_dim; ++i)
      s[i * shape_.value_dim + j] = from[i * kTile + j % kTile];
  }
}

std::unique_ptr<DeltaState> CpuBackend::make_delta_state(const DeltaShape& shape) {
  return std::make_unique<CpuDeltaState>(shape);
}

void CpuBackend::causal_conv(const CausalConvArgs& a) {
  check(a);
  auto& state = static_cast<CpuDeltaState&>(*a.state);
  const DeltaShape& s = state.shape();
  const std::vector<RowRun> runs = row_runs("causal_conv", a.rows, a.m, s);
  const std::int64_t channels = s.channels(), past = s.conv_kernel - 1,
                     blocks = (channels + kTile - 1) / kTile,
                     tasks = blocks * static_cast<std::int64_t>(runs.size());
  pool_.run([&](int thread) {
    const std::int64_t end = tasks * (thread + 1) / pool_.size();
    for (std::int64_t t = tasks * thread / pool_.size(); t < end; ++t) {
      const RowRun& run = runs[static_cast<std::size_t>(t / blocks)];
      const std::int64_t c = t % blocks * kTile, n = std::min<std::int64_t>(kTile, channels - c),
                         at = run.first * channels + c;
      float* columns = state.conv(a.layer, run.slot) + c;
      if (run.position == 0)
        for (std::int64_t i = 0; i < past; ++i) std::fill_n(columns + i * channels, n, 0.0f);
      kernels_.conv(
          {a.u + at, run.count, channels, n, a.weight + c, s.conv_kernel, columns, a.y + at});
    }
  });
}

void CpuBackend::delta_rule(const DeltaRuleArgs& a) {
  check(a);
  refuse_half("delta_rule", a.activations);
  auto& state = static_cast<CpuDeltaState&>(*a.state);
  const DeltaShape& s = state.shape();
  const std::vector<RowRun> runs = row_runs("delta_rule", a.rows, a.m, s);
  constexpr std::int64_t kRows = 32;  // normalised at a time, to stay in a near cache
  const auto heads = static_cast<std::int64_t>(runs.size()) * s.value_heads;
  const std::int64_t blocks = state.blocks(), parts = heads < 2 * pool_.size() ? blocks : 1,
                     channels = s.channels(), dk = s.key_dim;
  std::atomic<std::int64_t> next{0};
  pool_.run([&](int thread) {
    float* qn = scratch(thread, kRows * (2 * dk + 3));
    float *kn = qn + kRows * dk, *kq = kn + kRows * dk, *alpha = kq + kRows, *beta = alpha + kRows;
    for (std::int64_t t; (t = next.fetch_add(1)) < heads * parts;) {
      const RowRun& run = runs[static_cast<std::size_t>(t / parts / s.value_heads)];
      const std::int64_t head = t / parts % s.value_heads, part = t % parts,
                         key_head = head / (s.value_heads / s.key_heads);
      const std::int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
      if (run.position == 0)
        std::fill_n(state.block(a.layer, run.slot, head, first), (last - first) * dk * kTile, 0.0f);
      for (std::int64_t r = 0; r < run.count; r += kRows) {
        const std::int64_t row = run.first + r, n = std::min(kRows, run.count - r);
        const float* x = a.qkv + row * channels;
        for (std::int64_t i = 0; i < n; ++i)
          kq[i] = kernels_.unit_qk(x + i * channels + key_head * dk,
                                   x + i * channels + s.key_width() + key_head * dk, dk, a.eps,
                                   qn + i * dk, kn + i * dk);
        const std::int64_t gate = row * s.value_heads + head;
        kernels_.delta_gates(a.a + gate, a.b + gate, n, s.value_heads, a.a_log[head],
                             a.dt_bias[head], alpha, beta);
        for (std::int64_t b = first; b < last; ++b) {
          const std::int64_t column = head * s.value_dim + b * kTile;
          kernels_.delta_rule({qn, kn, x + 2 * s.key_width() + column, n, dk, channels,
                               std::min<std::int64_t>(kTile, s.value_dim - b * kTile), alpha, beta,
                               kq, state.block(a.layer, run.slot, head, b),
                               a.out + row * s.value_width() + column, s.value_width()});
        }
      }
    }
  });
}

}  // namespace nibble::cpu
