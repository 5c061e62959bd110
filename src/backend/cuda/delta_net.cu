// The gated delta net token by token, in prefill too: causal convolution, then the delta rule, with
// the CPU's sums (simd/delta_net.inl), so that decode, prefill and every split give the same bits.
//
// Block row y of a launch does its sequence's rows if it is the first of them; others leave. conv:
// a thread a channel. delta_rule: a warp has 16 columns of a head's state, its lower lanes the even
// rows of S and its upper lanes the odd ones (the CPU's two chains); an element of the state
// belongs to one thread, which keeps it in shared memory while all rows of the call pass. Bytes:
// the state in and out once a call.
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kThreads = 256, kColumns = 16, kRuleWarps = 2, kBatch = 16;

// Rows [first, first + result) of one sequence; 0 where `first` is not its first.
__device__ __forceinline__ int run_length(const Place* rows, int first, int m) {
  const int slot = rows[first].slot;
  if (first > 0 && rows[first - 1].slot == slot) return 0;
  int n = 1;
  while (first + n < m && rows[first + n].slot == slot) ++n;
  return n;
}

__global__ void __launch_bounds__(kThreads) conv(const __grid_constant__ ConvArgs a) {
  start_next(), await_last();
  const int first = static_cast<int>(blockIdx.y), count = run_length(a.rows, first, a.m);
  const int c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x), channels = a.state.channels;
  if (count == 0 || c >= channels) return;
  const int past = a.state.taps - 1;
  const bool fresh = a.rows[first].position == 0;
  float* state = a.state.conv + a.rows[first].slot * a.state.conv_slot + c;
  const float* u = a.u + static_cast<std::int64_t>(first) * channels + c;
  const auto row = [&](int r) {
    if (r >= 0) return u[static_cast<std::int64_t>(r) * channels];
    return fresh ? 0.0f : state[static_cast<std::int64_t>(past + r) * channels];
  };
  for (int r = 0; r < count; ++r) {
    float y = a.weight[c] * row(r - past);
    for (int i = 1; i <= past; ++i)
      y = fmaf(a.weight[static_cast<std::int64_t>(i) * channels + c], row(r - past + i), y);
    a.y[static_cast<std::int64_t>(first + r) * channels + c] = silu(y);
  }
  for (int i = 0; i < past; ++i)  // reads above what it has written
    state[static_cast<std::int64_t>(i) * channels] = row(count - past + i);
}

// Of one row and head: normalised q and k, k . q, and the gates.
struct Row {
  float kq, alpha, beta, unused;
};

__global__ void __launch_bounds__(32 * kRuleWarps) delta_rule(const __grid_constant__ RuleArgs a) {
  start_next(), await_last();
  const DeltaLayer& s = a.state;
  const int first = static_cast<int>(blockIdx.y), count = run_length(a.rows, first, a.m);
  if (count == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
            dk = s.key_dim, blocks = (s.value_dim + kColumns - 1) / kColumns,
            parts = (blocks + kRuleWarps - 1) / kRuleWarps;
  const int head = static_cast<int>(blockIdx.x) / parts,
            block = static_cast<int>(blockIdx.x) % parts * kRuleWarps + warp,
            key_head = head / (s.value_heads / s.key_heads);
  const bool active = block < blocks;
  const int odd = lane / 16, column = block * kColumns + lane % 16;
  const bool exists = active && column < s.value_dim;

  float* qk = reinterpret_cast<float*>(shared_memory());       // [kBatch][q, k][dk]
  Row* of_row = reinterpret_cast<Row*>(qk + kBatch * 2 * dk);  // [kBatch]
  float* own = reinterpret_cast<float*>(of_row + kBatch) + warp * dk * kColumns + lane % 16;
  float* state = s.rule + a.rows[first].slot * s.rule_slot +
                 (static_cast<std::int64_t>(head) * blocks + block) * dk * kColumns + lane % 16;
  const bool fresh = a.rows[first].position == 0;
  if (active) {
#pragma unroll 16
    for (int i = odd; i < dk; i += 2) own[i * kColumns] = fresh ? 0.0f : state[i * kColumns];
  }
  const float rate = 0.0f - exp_cut(a.a_log[head]);
  const int key_width = s.key_heads * dk;
  float d = 0, decay = 0;
  const float* key = nullptr;  // of the row before, whose update is still to be made

  for (int at = 0; at < count; at += kBatch) {
    const int n = count - at < kBatch ? count - at : kBatch;
    if (key != nullptr && active)  // before its batch goes
      for (int i = odd; i < dk; i += 2)
        own[i * kColumns] = fmaf(key[i], d, decay * own[i * kColumns]);
    key = nullptr;
    block_sync();
    for (int r = warp; r < n; r += kRuleWarps) {  // lower lanes q, upper lanes k
      const std::int64_t row = first + at + r;
      const float* x = a.qkv + row * s.channels + key_head * dk + odd * key_width;
      float sum = 0;
      for (int i = lane % 16; i < dk; i += 16) sum = fmaf(x[i], x[i], sum);
      sum = shuffle(add_sixteen(sum), 16 * odd);
      const float root = sqrtf(sum + a.eps);
      const float scale = 1.0f / (odd != 0 ? root : root * sqrtf(static_cast<float>(dk)));
      float* q = qk + r * 2 * dk;
      for (int i = lane % 16; i < dk; i += 16) q[odd * dk + i] = x[i] * scale;
      warp_sync();
      sum = 0;
      for (int i = lane % 16; i < dk; i += 16) sum = fmaf(q[dk + i], q[i], sum);
      sum = add_sixteen(sum);
      const std::int64_t gate = row * s.value_heads + head;
      if (lane == 0)
        of_row[r] = {sum, exp_cut(rate * softplus(a.a[gate] + a.dt_bias[head])), sigmoid(a.b[gate]),
                     0};
    }
    block_sync();
    for (int r = 0; r < n; ++r) {
      const float *q = qk + r * 2 * dk, *k = q + dk;
      float p = 0, o = 0;
      if (active) {
        if (key == nullptr) {
#pragma unroll 8
          for (int i = odd; i < dk; i += 2) {
            const float x = own[i * kColumns];
            p = fmaf(x, k[i], p), o = fmaf(x, q[i], o);
          }
        } else {
#pragma unroll 8
          for (int i = odd; i < dk; i += 2) {
            const float x = fmaf(key[i], d, decay * own[i * kColumns]);
            own[i * kColumns] = x;
            p = fmaf(x, k[i], p), o = fmaf(x, q[i], o);
          }
        }
      }
      p = p + shuffle_xor(p, 16), o = o + shuffle_xor(o, 16);
      const Row g = of_row[r];
      const std::int64_t row = first + at + r;
      decay = g.alpha, key = k;
      const float v =
          exists ? a.qkv[row * s.channels + 2 * key_width + head * s.value_dim + column] : 0.0f;
      d = g.beta * (v - decay * p);
      if (exists && odd == 0)
        a.out[(row * s.value_heads + head) * s.value_dim + column] = fmaf(g.kq, d, decay * o);
    }
  }
  if (!active) return;
#pragma unroll 8
  for (int i = odd; i < dk; i += 2)
    state[i * kColumns] = fmaf(key[i], d, decay * own[i * kColumns]);
}

}  // namespace

void launch_conv(const Queue& q, const ConvArgs& a) {
  const dim3 grid{static_cast<unsigned>((a.state.channels + kThreads - 1) / kThreads),
                  static_cast<unsigned>(a.m)};
  launch(q, "conv", conv, grid, kThreads, 0, a);
}

void launch_delta_rule(const Queue& q, const RuleArgs& a) {
  const int blocks = (a.state.value_dim + kColumns - 1) / kColumns,
            parts = (blocks + kRuleWarps - 1) / kRuleWarps;
  const dim3 grid{static_cast<unsigned>(a.state.value_heads * parts), static_cast<unsigned>(a.m)};
  const auto dk = static_cast<std::size_t>(a.state.key_dim);
  launch(q, "delta_rule", delta_rule, grid, 32 * kRuleWarps,
         sizeof(float) * dk * (2 * kBatch + kRuleWarps * kColumns) + kBatch * sizeof(Row), a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
