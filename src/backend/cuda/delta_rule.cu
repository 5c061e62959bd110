// The delta rule token by token, in prefill too, with the CPU's sums (simd/delta_net.inl), so that
// decode, prefill and every split give the same bits. (delta_rule_rows.cu: prompts, faster.)
//
// Block row y of a launch does its sequence's rows if it is the first of them; others leave. A warp
// has 16 columns of a head's state, its lower lanes the even rows of S and its upper lanes the odd
// ones (the CPU's two chains); an element of the state belongs to one thread, which keeps it in a
// register (or shared memory) while all rows of the call pass. The decay is applied when a row has
// been read, its update when the next one is: one walk over S a row. rule_inputs: of many rows,
// what does not wait for the state. Bytes: the state in and out once a call.
#include <type_traits>

#include "backend/cuda/delta_net.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kColumns = kDeltaColumns, kRuleWarps = 2, kBatch = 8;
constexpr int kAhead = 3;  // of a row's values, in fours

// Of many rows: what the recurrence need not wait for, once for all its blocks. A block a row.
constexpr int kInputWarps = 8;
__global__ void __launch_bounds__(32 * kInputWarps)
    rule_inputs(const __grid_constant__ RuleArgs a, float* qk, Row* of_row) {
  start_next(), await_last();
  const DeltaLayer& s = a.state;
  const int lane = static_cast<int>(threadIdx.x) % 32, dk = s.key_dim,
            each = s.value_heads / s.key_heads;
  const std::int64_t row = blockIdx.x;
  for (int key = static_cast<int>(threadIdx.x) / 32; key < s.key_heads; key += kInputWarps) {
    const float kq = shuffle(normalise<128>(a.qkv + row * s.channels + key * dk +
                                                lane / 16 * s.key_heads * dk + lane % 16,
                                            dk, a.eps, qk + (row * s.key_heads + key) * 2 * dk),
                             0);
    for (int head = key * each + lane; head < (key + 1) * each; head += 32) {
      Row r{kq, 0, 0, 0};
      gates(a, row, head, r);
      of_row[row * s.value_heads + head] = r;
    }
  }
}

// Dk: key_dim, and a thread's part of S in registers; 0: any, in shared memory. Ready: rule_inputs
// has run; batches come through three buffers.
template <int Dk, bool Ready>
__global__ void __launch_bounds__(32 * kRuleWarps)
    delta_rule(const __grid_constant__ RuleArgs a, const float* ready_qk, const Row* ready_row) {
  start_next();
  const bool early = !Ready && a.m <= kMaxRows;
  if (!early) await_last();
  const DeltaLayer& s = a.state;
  const int first = static_cast<int>(blockIdx.y), count = run_length(a.rows, first, a.m, early);
  if (count == 0) return;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32,
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

  // [buffers][kBatch] rows [q, k][even, odd][half], then their Row.
  constexpr int kBuffers = Ready ? 3 : 1;
  float* const all_qk = reinterpret_cast<float*>(shared_memory());
  Row* const all_rows = reinterpret_cast<Row*>(all_qk + kBuffers * kBatch * 4 * half);
  constexpr int kHeld = Dk > 0 ? Dk / 2 : 1;
  float held[kHeld];
  float* far =
      reinterpret_cast<float*>(all_rows + kBuffers * kBatch) + warp * dk * kColumns + lane % 16;
  const auto own = [&](int j) -> float& {
    return Dk > 0 ? held[j] : far[(odd + 2 * j) * kColumns];
  };
  float* state = s.rule + slot_of(a.rows, first, early) * s.rule_slot +
                 (static_cast<std::int64_t>(head) * blocks + block) * dk * kColumns + lane % 16;
  const bool fresh = load_fresh(&a.rows[first].position) == 0;
  if (early) {
    if (active && !fresh && lane == 0)  // the second cache may have it before it may be read
      prefetch(state, dk * kColumns * static_cast<int>(sizeof(float)));
    await_last();
  }
  const auto each = [&](auto&& f) {
    if constexpr (Dk > 0) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) f(j);
    } else {
#pragma unroll 8
      for (int j = 0; j < mine; ++j) f(j);
    }
  };
  const auto bring = [&](int at) {  // Ready: batch at / kBatch
    const int n = count - at < kBatch ? count - at : kBatch, buffer = at / kBatch % kBuffers;
    float* to = all_qk + buffer * kBatch * 4 * half;
    for (int i = tid; i < n * half; i += 32 * kRuleWarps)  // 16 bytes each
      copy_async16(to + 4 * i,
                   ready_qk +
                       (static_cast<std::int64_t>(first + at + i / half) * s.key_heads + key_head) *
                           4 * half +
                       i % half * 4);
    for (int i = tid; i < n; i += 32 * kRuleWarps)
      copy_async16(all_rows + buffer * kBatch + i,
                   ready_row + static_cast<std::int64_t>(first + at + i) * s.value_heads + head);
    copy_async_commit();
  };
  if constexpr (Ready) bring(0);
  each([&](int j) { own(j) = fresh || !active ? 0.0f : state[(odd + 2 * j) * kColumns]; });
  const auto value = [&](int r) {  // of this lane's column
    return exists && r < count ? a.qkv[(first + r) * static_cast<std::int64_t>(s.channels) +
                                       2 * s.key_heads * dk + head * s.value_dim + column]
                               : 0.0f;
  };
  float d = 0, v = value(0), v_next = value(1);
  // Of the row before, whose update is still to be made; own() has its decay.
  const float* key = nullptr;

  for (int at = 0; at < count; at += kBatch) {
    const int n = count - at < kBatch ? count - at : kBatch,
              buffer = Ready ? at / kBatch % kBuffers : 0;
    float* const qk = all_qk + buffer * kBatch * 4 * half;
    Row* const of_row = all_rows + buffer * kBatch;
    if constexpr (Ready) {
      copy_async_wait<0>();
      block_sync();  // nobody needs the batch before the last one any more
      bring(at + kBatch);
    } else {
      if (key != nullptr)  // before its batch goes
        each([&](int j) { own(j) = fmaf(key[j], d, own(j)); });
      key = nullptr;
      block_sync();
      for (int r = warp; r < n; r += kRuleWarps) {
        const float kq =
            normalise<Dk>(a.qkv + (first + at + r) * static_cast<std::int64_t>(s.channels) +
                              key_head * dk + odd * s.key_heads * dk + lane % 16,
                          dk, a.eps, qk + r * 4 * half);
        if (lane == 0) of_row[r].kq = kq, gates(a, first + at + r, head, of_row[r]);
      }
      block_sync();
    }
    for (int r = 0; r < n; ++r) {
      const float *q = qk + r * 4 * half + odd * half, *k = q + 2 * half;
      const float v_after = value(at + r + 2);
      const Row g = of_row[r];
      float p = 0, o = 0;
      const auto step = [&](int j, bool update, float before, float k_j, float q_j) {
        const float y = update ? fmaf(before, d, own(j)) : own(j);
        p = fmaf(y, k_j, p), o = fmaf(y, q_j, o);
        own(j) = g.alpha * y;
      };
      const auto walk = [&](auto update) {
        constexpr bool kUpdate = decltype(update)::value;
        if constexpr (Dk > 0) {  // in fours, some on their way
          float4 next[3][kAhead];
          const auto ask = [&](int i) {
            if (kUpdate) next[0][i % kAhead] = reinterpret_cast<const float4*>(key)[i];
            next[1][i % kAhead] = reinterpret_cast<const float4*>(k)[i];
            next[2][i % kAhead] = reinterpret_cast<const float4*>(q)[i];
          };
#pragma unroll
          for (int i = 0; i < kAhead; ++i) ask(i);
#pragma unroll
          for (int i = 0; i < kHeld / 4; ++i) {
            const float4 e = next[0][i % kAhead], y = next[1][i % kAhead], x = next[2][i % kAhead];
            if (i + kAhead < kHeld / 4) ask(i + kAhead);
            step(4 * i, kUpdate, e.x, y.x, x.x), step(4 * i + 1, kUpdate, e.y, y.y, x.y);
            step(4 * i + 2, kUpdate, e.z, y.z, x.z), step(4 * i + 3, kUpdate, e.w, y.w, x.w);
          }
        } else {
          each([&](int j) { step(j, kUpdate, kUpdate ? key[j] : 0.0f, k[j], q[j]); });
        }
      };
      if (key == nullptr)
        walk(std::false_type{});
      else
        walk(std::true_type{});
      p = p + shuffle_xor(p, 16), o = o + shuffle_xor(o, 16);
      key = k, d = g.beta * (v - g.alpha * p);
      if (exists && odd == 0)
        a.out[((first + at + r) * static_cast<std::int64_t>(s.value_heads) + head) * s.value_dim +
              column] = fmaf(g.kq, d, g.alpha * o);
      v = v_next, v_next = v_after;
    }
  }
  if (active) each([&](int j) { state[(odd + 2 * j) * kColumns] = fmaf(key[j], d, own(j)); });
}

}  // namespace

std::size_t rule_scratch(const DeltaLayer& s, int m) {
  if (s.key_dim != 128 || m <= kMaxRows) return 0;
  return static_cast<std::size_t>(m) *
         (static_cast<std::size_t>(s.key_heads * 2 * s.key_dim) * sizeof(float) +
          static_cast<std::size_t>(s.value_heads) * sizeof(Row));
}

void launch_delta_rule(const Queue& q, const RuleArgs& a, void* scratch) {
  const DeltaLayer& s = a.state;
  const int blocks = (s.value_dim + kColumns - 1) / kColumns,
            parts = (blocks + kRuleWarps - 1) / kRuleWarps;
  const dim3 grid{static_cast<unsigned>(s.value_heads * parts), static_cast<unsigned>(a.m)};
  const auto dk = static_cast<std::size_t>(s.key_dim), half = (dk + 1) / 2;
  const bool held = s.key_dim == 128;  // the published models'
  const std::size_t batch = kBatch * (4 * half * sizeof(float) + sizeof(Row));
  float* const qk = static_cast<float*>(scratch);
  Row* const rows =
      reinterpret_cast<Row*>(qk + static_cast<std::size_t>(a.m * s.key_heads) * 2 * dk);
  if (rule_scratch(s, a.m) > 0) {
    launch(q, "rule_inputs", rule_inputs, dim3{static_cast<unsigned>(a.m)}, 32 * kInputWarps, 0, a,
           qk, rows);
    launch(q, "delta_rule", delta_rule<128, true>, grid, 32 * kRuleWarps, 3 * batch, a,
           static_cast<const float*>(qk), static_cast<const Row*>(rows));
  } else {
    launch(q, "delta_rule", held ? delta_rule<128, false> : delta_rule<0, false>, grid,
           32 * kRuleWarps, batch + (held ? 0 : dk * kRuleWarps * kColumns * sizeof(float)), a,
           static_cast<const float*>(nullptr), static_cast<const Row*>(nullptr));
  }
}

}  // namespace nibble::NIBBLE_CUDA_NS
