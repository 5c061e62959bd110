// The gated delta net token by token, in prefill too: causal convolution, then the delta rule, with
// the CPU's sums (simd/delta_net.inl), so that decode, prefill and every split give the same bits.
//
// conv: a thread a channel and row. delta_rule: block row y of a launch does its sequence's rows if
// it is the first of them; others leave. A warp has 16 columns of a head's state, its lower lanes
// the even rows of S and its upper lanes the odd ones (the CPU's two chains); an element of the
// state belongs to one thread, which keeps it in a register (or shared memory) while all rows of
// the call pass. Bytes: the state in and out once a call.
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kThreads = 256, kColumns = 16, kRuleWarps = 2, kBatch = 8;

// Rows [first, first + result) of one sequence; 0 where `first` is not its first. By whole warps.
__device__ __forceinline__ int run_length(const Place* rows, int first, int m) {
  const int slot = rows[first].slot, lane = static_cast<int>(threadIdx.x) % 32;
  if (first > 0 && rows[first - 1].slot == slot) return 0;
  for (int at = first + 1;; at += 32) {
    const int mine = at + lane, other = mine >= m || rows[mine].slot != slot ? mine : m;
    const int end = -warp_max(-other);  // the lowest
    if (end < at + 32) return (end < m ? end : m) - first;
  }
}

// A block computes row blockIdx.y; a sequence's first block also the rows that see the state, and
// then the state: nobody else reads it.
__global__ void __launch_bounds__(kThreads) conv(const __grid_constant__ ConvArgs a) {
  start_next(), await_last();
  const int first = static_cast<int>(blockIdx.y), past = a.state.taps - 1,
            channels = a.state.channels, slot = a.rows[first].slot;
  int before = 0;  // rows of the same sequence just before, up to `past`
  while (before < past && before < first && a.rows[first - before - 1].slot == slot) ++before;
  if (before > 0 && before < past) return;
  const bool leads = before == 0 && past > 0;
  const int count = leads ? run_length(a.rows, first, a.m) : 1;
  const int c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (c >= channels) return;
  const bool fresh = a.rows[first].position == 0;
  float* state = a.state.conv + slot * a.state.conv_slot + c;
  const float* u = a.u + static_cast<std::int64_t>(first) * channels + c;
  const auto row = [&](int r) {
    if (r >= -before) return u[static_cast<std::int64_t>(r) * channels];
    return fresh ? 0.0f : state[static_cast<std::int64_t>(past + r) * channels];
  };
  const int own = leads ? past : 1;
  for (int r = 0; r < (own < count ? own : count); ++r) {
    float y = a.weight[c] * row(r - past);
    for (int i = 1; i <= past; ++i)
      y = fmaf(a.weight[static_cast<std::int64_t>(i) * channels + c], row(r - past + i), y);
    a.y[static_cast<std::int64_t>(first + r) * channels + c] = silu(y);
  }
  if (!leads) return;
  for (int i = 0; i < past; ++i)  // reads above what it has written
    state[static_cast<std::int64_t>(i) * channels] = row(count - past + i);
}

// Of one row and head: k . q of the normalised, and the gates.
struct Row {
  float kq, alpha, beta, unused;
};

// Dk: key_dim, and a thread's part of S in registers; 0: any, in shared memory.
template <int Dk>
__global__ void __launch_bounds__(32 * kRuleWarps) delta_rule(const __grid_constant__ RuleArgs a) {
  start_next(), await_last();
  const DeltaLayer& s = a.state;
  const int first = static_cast<int>(blockIdx.y), count = run_length(a.rows, first, a.m);
  if (count == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
            dk = Dk > 0 ? Dk : s.key_dim, half = (dk + 1) / 2,
            blocks = (s.value_dim + kColumns - 1) / kColumns,
            parts = (blocks + kRuleWarps - 1) / kRuleWarps;
  const int head = static_cast<int>(blockIdx.x) / parts,
            block = static_cast<int>(blockIdx.x) % parts * kRuleWarps + warp,
            key_head = head / (s.value_heads / s.key_heads);
  const bool active = block < blocks;
  const int odd = lane / 16, column = block * kColumns + lane % 16;
  const bool exists = active && column < s.value_dim;
  const int mine = active ? (dk - odd + 1) / 2 : 0;  // rows of S: odd, odd + 2, ...

  float* qk = reinterpret_cast<float*>(shared_memory());         // [kBatch][q, k][even, odd][half]
  Row* of_row = reinterpret_cast<Row*>(qk + kBatch * 4 * half);  // [kBatch]
  constexpr int kHeld = Dk > 0 ? Dk / 2 : 1;
  float held[kHeld];
  float* far = reinterpret_cast<float*>(of_row + kBatch) + warp * dk * kColumns + lane % 16;
  const auto own = [&](int j) -> float& {
    return Dk > 0 ? held[j] : far[(odd + 2 * j) * kColumns];
  };
  float* state = s.rule + a.rows[first].slot * s.rule_slot +
                 (static_cast<std::int64_t>(head) * blocks + block) * dk * kColumns + lane % 16;
  const bool fresh = a.rows[first].position == 0;
  const auto each = [&](auto&& f) {
    if constexpr (Dk > 0) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) f(j);
    } else {
#pragma unroll 8
      for (int j = 0; j < mine; ++j) f(j);
    }
  };
  each([&](int j) { own(j) = fresh || !active ? 0.0f : state[(odd + 2 * j) * kColumns]; });
  const float rate = 0.0f - exp_cut(a.a_log[head]);
  const int key_width = s.key_heads * dk;
  const auto value = [&](int r) {  // of this lane's column
    return exists && r < count ? a.qkv[(first + r) * static_cast<std::int64_t>(s.channels) +
                                       2 * key_width + head * s.value_dim + column]
                               : 0.0f;
  };
  float d = 0, decay = 0, v = value(0);
  const float* key = nullptr;  // of the row before, whose update is still to be made

  for (int at = 0; at < count; at += kBatch) {
    const int n = count - at < kBatch ? count - at : kBatch;
    if (key != nullptr)  // before its batch goes
      each([&](int j) { own(j) = fmaf(key[j], d, decay * own(j)); });
    key = nullptr;
    block_sync();
    constexpr int kRows = kBatch / kRuleWarps, kPart = Dk > 0 ? Dk / 16 : 1;
    float x[kRows][kPart];  // lower lanes q, upper lanes k
    const auto source = [&](int r) {
      return a.qkv + (first + at + r) * static_cast<std::int64_t>(s.channels) + key_head * dk +
             odd * key_width + lane % 16;
    };
    if constexpr (Dk > 0) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int r = warp + kRuleWarps * i;
        if (r >= n) break;
#pragma unroll
        for (int j = 0; j < kPart; ++j) x[i][j] = source(r)[16 * j];
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = warp + kRuleWarps * i;
      if (r >= n) break;
      const auto of = [&](int j) { return Dk > 0 ? x[i][j < kPart ? j : 0] : source(r)[16 * j]; };
      const int values = Dk > 0 ? kPart : (dk - lane % 16 + 15) / 16;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < values; ++j) sum = fmaf(of(j), of(j), sum);
      sum = shuffle(add_sixteen(sum), 16 * odd);
      const float root = sqrtf(sum + a.eps);
      const float scale = 1.0f / (odd != 0 ? root : root * sqrtf(static_cast<float>(dk)));
      float* to = qk + (r * 2 + odd) * 2 * half + lane % 2 * half + lane % 16 / 2;
      sum = 0;
      for (int j = 0; j < (dk + 15) / 16; ++j) {  // q and k of a column, in both halves of the warp
        const bool is = j < values;
        const float one = is ? of(j) * scale : 0.0f, other = shuffle_xor(one, 16);
        if (is) to[8 * j] = one, sum = fmaf(one, other, sum);
      }
      sum = add_sixteen(sum);
      if (lane == 0) of_row[r].kq = sum;
    }
    for (int r = warp + kRuleWarps * lane; r < n; r += kRuleWarps * 32) {
      const std::int64_t gate = (first + at + r) * static_cast<std::int64_t>(s.value_heads) + head;
      of_row[r].alpha = exp_cut(rate * softplus(a.a[gate] + a.dt_bias[head]));
      of_row[r].beta = sigmoid(a.b[gate]);
    }
    block_sync();
    for (int r = 0; r < n; ++r) {
      const float *q = qk + r * 4 * half + odd * half, *k = q + 2 * half;
      const float next = value(at + r + 1);
      float p = 0, o = 0;
      if (key == nullptr) {
        each([&](int j) { p = fmaf(own(j), k[j], p), o = fmaf(own(j), q[j], o); });
      } else {
        each([&](int j) {
          const float y = fmaf(key[j], d, decay * own(j));
          own(j) = y;
          p = fmaf(y, k[j], p), o = fmaf(y, q[j], o);
        });
      }
      p = p + shuffle_xor(p, 16), o = o + shuffle_xor(o, 16);
      const Row g = of_row[r];
      decay = g.alpha, key = k;
      d = g.beta * (v - decay * p);
      if (exists && odd == 0)
        a.out[((first + at + r) * static_cast<std::int64_t>(s.value_heads) + head) * s.value_dim +
              column] = fmaf(g.kq, d, decay * o);
      v = next;
    }
  }
  if (active)
    each([&](int j) { state[(odd + 2 * j) * kColumns] = fmaf(key[j], d, decay * own(j)); });
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
  const auto dk = static_cast<std::size_t>(a.state.key_dim), half = (dk + 1) / 2;
  const bool held = a.state.key_dim == 128;  // the published models'
  launch(q, "delta_rule", held ? delta_rule<128> : delta_rule<0>, grid, 32 * kRuleWarps,
         sizeof(float) * (4 * half * kBatch + (held ? 0 : dk * kRuleWarps * kColumns)) +
             kBatch * sizeof(Row),
         a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
