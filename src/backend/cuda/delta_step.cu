// A step of the gated delta net of up to 8 rows, from convolved q, k and v to the rounded rows that
// its output projection takes: the delta rule (delta_rule.cu), then the gated norm and the rounding
// of a head (rows.cuh), with their bits. One launch for two, of 4 us each between streams.
//
// A block of 8 warps has a value head of the sequence that begins at row blockIdx.y; others leave.
// A warp has 16 of 128 columns of the head's state, its lower lanes the even rows of S and its
// upper lanes the odd ones, in registers while the sequence's rows pass. What a row's q and k, its
// gates and its norm need is made by a warp each.
//
// The state is read before await_last(): what wrote it came before the copy that brought this
// step's places, and no other launch of the step has it (backend.h, begin_step).
// Bytes: the state in and out.
#include "backend/cuda/delta_net.cuh"
#include "backend/cuda/rows.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kDim = kDeltaStepDim, kWarps = kDim / kDeltaColumns, kHeld = kDim / 2;
static_assert(kWarps == kMaxRows);

__global__ void __launch_bounds__(32 * kWarps, 2)
    delta_step(const __grid_constant__ DeltaStepArgs a) {
  start_next(false);
  const DeltaLayer& s = a.rule.state;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32, odd = lane / 16,
            head = static_cast<int>(blockIdx.x), first = static_cast<int>(blockIdx.y),
            column = warp * kDeltaColumns + lane % 16;
  const bool fresh = load_fresh(&a.rule.rows[first].position) == 0;
  const int slots = lane < a.rule.m ? slot_of(a.rule.rows, lane, true) : -1,
            slot = shuffle(slots, first), before = shuffle(slots, first > 0 ? first - 1 : 0);
  const int count = first_lane(lane > first && slots != slot) - first;
  if (first > 0 && before == slot) return;
  float* const state =
      s.rule + slot * s.rule_slot +
      static_cast<std::int64_t>((head * kWarps + warp) * kDim + odd) * kDeltaColumns + lane % 16;
  float held[kHeld];  // rows odd, odd + 2, ... of S
  if (fresh) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) held[j] = 0;
  } else {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) held[j] = load_fresh(state + 2 * j * kDeltaColumns);
  }
  // Of a row, three warps make what can be made apart. Weights first, which nobody writes.
  const int of_gates = (warp + kWarps / 2) % kWarps, of_norm = (warp + kWarps / 4) % kWarps;
  const float rate = 0.0f - exp_cut(a.rule.a_log[head]), bias = a.rule.dt_bias[head];
  const float2 weight[2] = {{a.norm[lane], a.norm[lane + 32]},
                            {a.norm[lane + 64], a.norm[lane + 96]}};
  const auto row = [&](int r) { return first + (r < count ? r : 0); };
  const std::int64_t gates_at = static_cast<std::int64_t>(row(of_gates)) * s.value_heads + head,
                     norm_at = static_cast<std::int64_t>(row(of_norm)) * s.value_heads + head;
  const float* const key = a.rule.qkv + static_cast<std::int64_t>(row(warp)) * s.channels +
                           (a.by_each.of(head) + odd * s.key_heads) * kDim + lane % 16;
  const float* const z = a.z + norm_at * kDim + lane;
  const float* const values = a.rule.qkv + static_cast<std::int64_t>(first) * s.channels +
                              (2 * s.key_heads + head) * kDim + column;
  float* const qk = reinterpret_cast<float*>(shared_memory());  // [row][q, k][even, odd][kHeld]
  float* const outs = qk + kMaxRows * 2 * kDim;                 // [row][kDim]
  Row* const of_row = reinterpret_cast<Row*>(outs + kMaxRows * kDim);
  await_last();

  float v = values[0];
  float2 gate[2] = {};
  if (warp < count) {
    const float kq = normalise<kDim>(key, kDim, a.rule.eps, qk + warp * 2 * kDim);
    if (lane == 0) of_row[warp].kq = kq;
  }
  if (of_gates < count) {
    float x = a.rule.a[gates_at], beta = a.rule.b[gates_at];
    hold(beta);  // both loads at once
    x = x + bias;
    const float alpha = exp_cut(rate * softplus(x));
    if (lane == 0) of_row[of_gates].alpha = alpha, of_row[of_gates].beta = sigmoid(beta);
  }
  if (of_norm < count) {
    gate[0] = {z[0], z[32]}, gate[1] = {z[64], z[96]};
#pragma unroll
    for (int i = 0; i < 2; ++i) gate[i] = {silu(gate[i].x), silu(gate[i].y)};
  }
  block_sync();
  let_next();  // not before: its weights would come in the way of what was just loaded

  float d = 0;
  const auto update = [&](const float* k) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) held[j] = fmaf(k[j], d, held[j]);
  };
  const float* k = nullptr;  // of the row before
#pragma unroll 1
  for (int r = 0; r < count; ++r) {
    if (r > 0) update(k);
    const float* q = qk + r * 2 * kDim + odd * kHeld;
    k = q + kDim;
    const float after =
        r + 1 < count ? values[static_cast<std::int64_t>(r + 1) * s.channels] : 0.0f;
    const Row g = of_row[r];
    float p = 0, o = 0;
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      p = fmaf(held[j], k[j], p), o = fmaf(held[j], q[j], o);
      held[j] = g.alpha * held[j];
    }
    p = p + shuffle_xor(p, 16), o = o + shuffle_xor(o, 16);
    d = g.beta * (v - g.alpha * p);
    o = fmaf(g.kq, d, g.alpha * o);
    if (odd == 0) {
      outs[r * kDim + column] = o;
      a.rule.out[(static_cast<std::int64_t>(first + r) * s.value_heads + head) * kDim + column] = o;
    }
    v = after;
  }
  block_sync();
  if (of_norm < count) {
    float2 x[2];
    float block[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* from = outs + of_norm * kDim + i * kStage + lane;
      x[i] = {from[0], from[32]};
      block[i] = add_lanes(x[i].x * x[i].x + x[i].y * x[i].y);
    }
    const float inv = 1.0f / sqrtf((block[0] + block[1]) / static_cast<float>(kDim) + a.norm_eps);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      x[i] = {x[i].x * inv * weight[i].x * gate[i].x, x[i].y * inv * weight[i].y * gate[i].y};
    round_stages<2, true>(x, 2, 0, 1, a.int8,
                          {static_cast<char*>(a.fixed.words) + norm_at * (kDim / kStage) * 128},
                          a.fixed.meta + norm_at * (kDim / kStage));
  }
  update(k);
#pragma unroll
  for (int j = 0; j < kHeld; ++j) state[2 * j * kDeltaColumns] = held[j];
}

}  // namespace

void launch_delta_step(const Queue& q, const DeltaStepArgs& a) {
  const DeltaLayer& s = a.rule.state;
  const std::size_t shared = kMaxRows * (3 * kDim * sizeof(float) + sizeof(Row));
  launch(q, "delta_step", delta_step,
         dim3{static_cast<unsigned>(s.value_heads), static_cast<unsigned>(a.rule.m)}, 32 * kWarps,
         shared, a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
