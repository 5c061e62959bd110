// causal_conv and delta_rule: the gated delta net, from its projections to its output.
//
// causal_conv, per channel c, taps w[0..n-1], u before position 0 = 0:
//   y_t = silu(sum_i w_i u_(t - n + 1 + i))        the last tap takes the newest sample
// delta_rule, per value head h with key head floor(h / (value_heads / key_heads)); S is
// [key_dim, value_dim], 0 at position 0:
//   kn = k / sqrt(sum k^2 + eps),  qn = q / sqrt(sum q^2 + eps) / sqrt(key_dim)
//   alpha = exp(-exp(a_log_h) softplus(a_h + dt_bias_h)),  beta = sigmoid(b_h)
//   S = alpha S;  d = beta (v - S^T kn);  S = S + kn d^T;  o = S^T qn
// A backend may take several tokens at once (chunks), or use the state before the update:
//   d = beta (v - alpha S^T kn),  o = alpha S^T qn + (kn . qn) d
// Rows of a slot lie together, at ascending positions without a gap. Position 0 starts from zero
// whatever the state holds, so that a slot needs no clearing; every other position continues it.
// Aliasing: y apart from u, out apart from qkv, a and b. The state is advanced in place (the named
// exception of docs/design.md): each element is read and written by one thread of one launch.
#pragma once
#include <cstdint>
#include <vector>

#include "ops/attention.h"

namespace nibble {

struct DeltaShape {
  std::int64_t layers = 0, slots = 0;
  std::int64_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;
  std::int64_t conv_kernel = 0;  // taps
  std::int64_t key_width() const { return key_heads * key_dim; }
  std::int64_t value_width() const { return value_heads * value_dim; }
  std::int64_t channels() const { return 2 * key_width() + value_width(); }
  // One slot's state in fp32: recurrent, and the last conv_kernel - 1 columns of every channel.
  std::uint64_t slot_bytes() const {
    return static_cast<std::uint64_t>(layers *
                                      (value_width() * key_dim + (conv_kernel - 1) * channels())) *
           sizeof(float);
  }
};

// Recurrent and convolution state of all layers and slots, in the backend's own order.
class DeltaState {
 public:
  virtual ~DeltaState() = default;
  const DeltaShape& shape() const { return shape_; }
  // All layers of slot `from` -> slot `to`.
  virtual void copy(std::int64_t from, std::int64_t to) = 0;
  // One head's S [key_dim, value_dim] (host memory; for tests).
  virtual void read(std::int64_t layer, std::int64_t slot, std::int64_t head, float* s) const = 0;

 protected:
  explicit DeltaState(const DeltaShape& s) : shape_(s) {}
  DeltaShape shape_;
};

struct CausalConvArgs {
  const float* u = nullptr;       // [M, channels]
  const float* weight = nullptr;  // [conv_kernel, channels], oldest tap first
  std::int64_t m = 0;
  const RowPlace* rows = nullptr;  // [M] on the host
  DeltaState* state = nullptr;
  std::int64_t layer = 0;
  float* y = nullptr;  // [M, channels]
};

struct DeltaRuleArgs {
  const float* qkv = nullptr;      // [M, channels]: q heads, k heads, v heads
  const float* a = nullptr;        // [M, value_heads]
  const float* b = nullptr;        // [M, value_heads]
  const float* a_log = nullptr;    // [value_heads]
  const float* dt_bias = nullptr;  // [value_heads]
  float eps = 1e-6f;
  std::int64_t m = 0;
  const RowPlace* rows = nullptr;  // [M] on the host
  DeltaState* state = nullptr;
  std::int64_t layer = 0;
  float* out = nullptr;                          // [M, value_heads * value_dim]
  Activations activations = Activations::Int16;  // Half: the device's order of sums over key_dim
};

// Rows [first, first + count) of one slot, the first at `position`.
struct RowRun {
  std::int64_t first = 0, count = 0, slot = 0, position = 0;
};
// Error unless every slot's rows lie together at ascending positions without a gap.
std::vector<RowRun> row_runs(const char* op, const RowPlace* rows, std::int64_t m,
                             const DeltaShape& shape);

void check(const DeltaShape& s);
void check(const CausalConvArgs& a);
void check(const DeltaRuleArgs& a);

// One channel of one sequence from its start, in double: u [n] -> y [n].
void causal_conv_reference(const float* u, std::int64_t n, const float* taps, std::int64_t kernel,
                           double* y);

// One value head of one sequence from its start. s: [key_dim, value_dim], carried over calls.
struct DeltaHead {
  std::int64_t n = 0, key_dim = 0, value_dim = 0;
  const double *q = nullptr, *k = nullptr, *v = nullptr;  // [n, key_dim] twice, [n, value_dim]
  const double *a = nullptr, *b = nullptr;                // [n]
  double a_log = 0, dt_bias = 0, eps = 1e-6;
};
void delta_rule_reference(const DeltaHead& h, double* s, double* out);
// The same in chunks of at most `chunk` tokens, as GPUs and transformers compute it.
void delta_rule_chunked_reference(const DeltaHead& h, std::int64_t chunk, double* s, double* out);

}  // namespace nibble
