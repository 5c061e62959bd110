// The delta rule for prompts (Activations::Half): key_dim 128, eight tokens a walk over the state.
//
// With S0 the state before a chunk, A_i the decay of its tokens up to i and A_ij of those after j:
//   u_i = v_i - A_i S0^T k_i,   d = T diag(beta) u,   T = (I + [beta_i A_ij k_i.k_j, i > j])^-1
//   o_i = A_i S0^T q_i + sum_j A_ij (q_i.k_j) d_j,    S = A S0 + sum_j k_j (A_last,j d_j)^T
// chunk_inputs makes, once for all columns, k and q normalised and of every row and head a record:
// its rows of w T beta and of [A_ij q_i.k_j] T beta, and A_i. delta_rule_rows: a warp has 4 W
// columns of a head's state, lane 4 g + c the key rows 16 g .. of columns c, c + 4, ...; slot t of
// its sums over key rows is of token t ^ g, so that the sums meet, each in the group of its token's
// number, by shuffles of what the other group lacks.
// Bits: fp32; chunks end where positions are multiples of 8; a row needs only those before it. The
// order of a column's sums depends on none of W, the grid and the rows that follow.
#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kDim = 128, kChunk = 8, kWarps = 4, kGroups = 8;
constexpr int kRecord = 16;        // floats: in slot j ^ i, w T beta; then the outputs'
constexpr int kPitch = kDim + 16;  // of rows in shared memory: other banks
constexpr int kHeadPitch = 2 * kChunk * kChunk + 8;
constexpr int kFours = 2 * kDim / 4;  // of a row's k and q
constexpr int kRuns = kMaxRows;       // sequences a launch

struct Runs {
  int first[kRuns], count[kRuns];
};

// A block: chunks that begin in rows 8 x .. 8 x + 7, key head y. qk [row][key head][k, q].
__global__ void __launch_bounds__(32 * kChunk)
    chunk_inputs(const __grid_constant__ RuleArgs a, float* qk, float* records, float* decays) {
  start_next(), await_last();
  const DeltaLayer& s = a.state;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32,
            window = static_cast<int>(blockIdx.x) * kChunk, key = static_cast<int>(blockIdx.y),
            each = s.value_heads / s.key_heads;
  float* const k = reinterpret_cast<float*>(shared_memory());
  float* const q = k + kChunk * kPitch;
  float* const dots = q + kChunk * kPitch;  // [i][j]: i >= j q_i . k_j, else k_i . k_j
  float* const m = dots + kChunk * kChunk + (4 * warp + lane / kChunk) * kHeadPitch;
  float* const o = m + kChunk * kChunk;
  const int row = window + lane;
  const bool begins = row == 0 || row >= a.m || a.rows[row].slot != a.rows[row - 1].slot ||
                      a.rows[row].position % kChunk == 0;
  for (int at = 0;;) {
    at = first_lane(begins && lane >= at);
    const int first = window + at;
    if (at >= kChunk || first >= a.m) return;
    const int n = first_lane(begins && lane > at) - at;
    at += n;
    block_sync();  // the chunk before is done with
    if (warp < n) {
      const float* from =
          a.qkv + static_cast<std::int64_t>(first + warp) * s.channels + key * kDim + lane;
      float* to = qk + (static_cast<std::int64_t>(first + warp) * s.key_heads + key) * 2 * kDim;
      float x[2][kDim / 32];
#pragma unroll
      for (int i = 0; i < kDim / 32; ++i)
        x[0][i] = from[s.key_heads * kDim + 32 * i], x[1][i] = from[32 * i];
#pragma unroll
      for (int is_q = 0; is_q < 2; ++is_q) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kDim / 32; ++i) sum = fmaf(x[is_q][i], x[is_q][i], sum);
        const float root = sqrtf(add_lanes(sum) + a.eps),
                    scale = 1.0f / (is_q != 0 ? root * sqrtf(static_cast<float>(kDim)) : root);
        float* row_of = (is_q != 0 ? q : k) + warp * kPitch + lane;
#pragma unroll
        for (int i = 0; i < kDim / 32; ++i)
          to[is_q * kDim + lane + 32 * i] = row_of[32 * i] = x[is_q][i] * scale;
      }
    }
    block_sync();
    {
      const int i = tid / 32, j = tid / 4 % 8;
      const float4* x = reinterpret_cast<const float4*>((i >= j ? q : k) + i * kPitch) + tid % 4;
      const float4* y = reinterpret_cast<const float4*>(k + j * kPitch) + tid % 4;
      float sum = 0;
#pragma unroll
      for (int e = 0; e < kDim / 4; e += 4) {
        sum = fmaf(x[e].x, y[e].x, sum), sum = fmaf(x[e].y, y[e].y, sum);
        sum = fmaf(x[e].z, y[e].z, sum), sum = fmaf(x[e].w, y[e].w, sum);
      }
      sum = sum + shuffle_xor(sum, 1);
      sum = sum + shuffle_xor(sum, 2);
      if (tid % 4 == 0) dots[i * kChunk + j] = sum;
    }
    block_sync();
    // Lane 8 h + j has column j of head h's: of the matrix to invert, of [A_ij q_i.k_j], of T.
    for (int at_head = 4 * warp; at_head < each; at_head += 4 * kChunk) {
      const int j = lane % kChunk, lead = lane - j;
      const bool exists = at_head + lane / kChunk < each;
      const int head = key * each + (exists ? at_head + lane / kChunk : each - 1);
      float alpha = 1, beta_j = 0;
      if (j < n) {
        const std::int64_t of = static_cast<std::int64_t>(first + j) * s.value_heads + head;
        const float rate = 0.0f - exp_cut(a.a_log[head]);
        alpha = exp_cut(rate * softplus(a.a[of] + a.dt_bias[head])), beta_j = sigmoid(a.b[of]);
      }
      float decay = 1, all = 1, own = 1, t[kChunk];
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const float alpha_i = shuffle(alpha, lead + i), beta_i = shuffle(beta_j, lead + i);
        all = all * alpha_i;
        if (i == j) own = all;
        if (i > j) decay = decay * alpha_i;
        if (i >= j) o[i * kChunk + j] = decay * dots[i * kChunk + j];
        if (i > j) m[i * kChunk + j] = beta_i * decay * dots[j * kChunk + i];
      }
      warp_sync();
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        float sum = 0, out = 0;
#pragma unroll
        for (int l = 0; l < i; ++l) {
          sum = fmaf(m[i * kChunk + l], t[l], sum);
          out = fmaf(o[i * kChunk + l], t[l], out);
        }
        t[i] = i == j ? 1.0f : i > j ? -sum : 0.0f;
        out = i >= j ? fmaf(o[i * kChunk + i], t[i], out) : 0.0f;
        const float left = shuffle(decay, lead + i);  // of what token i adds, at the chunk's end
        if (!exists || i >= n) continue;
        const std::int64_t of = static_cast<std::int64_t>(first + i) * s.value_heads + head;
        float* record = records + of * kRecord;
        record[i ^ j] = left * t[i] * beta_j, record[kChunk + (i ^ j)] = out * beta_j;
        if (i == j) decays[of] = own;
      }
      warp_sync();  // m and o are the next heads'
    }
  }
}

template <int W>
__global__ void __launch_bounds__(32 * kWarps)
    delta_rule_rows(const __grid_constant__ RuleArgs a, const __grid_constant__ Runs runs,
                    const float* qk, const float* records, const float* decays, int keys) {
  start_next(), await_last();
  const DeltaLayer& s = a.state;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32, group = lane / 4;
  int first = static_cast<int>(blockIdx.y), count = 1;
  if (a.m > kMaxRows) {
    first = runs.first[blockIdx.y], count = runs.count[blockIdx.y];
  } else {  // a graph may be run again with others
    if (first > 0 && a.rows[first - 1].slot == a.rows[first].slot) return;
    while (first + count < a.m && a.rows[first + count].slot == a.rows[first].slot) ++count;
  }
  const int position = a.rows[first].position, parts = (s.value_dim + 4 * W - 1) / (4 * W),
            units = s.value_heads * parts, each = s.value_heads / s.key_heads;
  const auto unit_of = [&](int w) {  // past the end: the last one, for nobody
    const int unit = static_cast<int>(blockIdx.x) * kWarps + w;
    return unit < units ? unit : units - 1;
  };
  const bool active = static_cast<int>(blockIdx.x) * kWarps + warp < units;
  const int head = unit_of(warp) / parts, first_key = unit_of(0) / parts / each,
            keys_here = unit_of(kWarps - 1) / parts / each - first_key + 1,
            column = unit_of(warp) % parts * 4 * W + lane % 4;
  const auto exists = [&](int w) { return active && column + 4 * w < s.value_dim; };

  // Twice: [keys][k, q][slot][4][group] fours, then every warp's records [token][part ^ token / 2].
  float4* const buffers = reinterpret_cast<float4*>(shared_memory());
  const int buffer_fours = keys * kChunk * kFours + kWarps * kChunk * kRecord / 4,
            my_key = (head / each - first_key) * kChunk * kFours + group,
            my_records = keys * kChunk * kFours + warp * kChunk * kRecord / 4;
  const int token[2] = {warp ^ tid % 8, (warp + kWarps) ^ tid % 8};  // that this thread brings
  const float* const from_qk =
      qk + (static_cast<std::int64_t>(first) * s.key_heads + first_key) * 2 * kDim + tid % 8 * 16 +
      tid / 8 % 4 * 4;
  const int to_record = my_records + group * 4 + (lane % 4 ^ group / 2);
  float v[W], v_next[W], decay_next;
  // Of tokens that are none, the last one's. The group's token's v comes into registers.
  const auto bring = [&](int at, int n, int buffer) {
    float4* to = buffers + buffer * buffer_fours;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* x = from_qk + static_cast<std::int64_t>(at + (token[i] < n ? token[i] : n - 1)) *
                                     (s.key_heads * 2 * kDim);
      float4* y = to + i * kWarps * 32 + tid;
#pragma unroll 1
      for (int key = 0; key < keys_here; ++key, x += 2 * kDim, y += kChunk * kFours)
        copy_async16(y, x), copy_async16(y + kChunk * kFours / 2, x + kDim);
    }
    const std::int64_t row = first + at + (group < n ? group : n - 1),
                       of = row * s.value_heads + head;
    copy_async16(to + to_record, records + of * kRecord + lane % 4 * 4);
    copy_async_commit();
    const float* x =
        a.qkv + row * s.channels + 2 * s.key_heads * kDim + head * s.value_dim + column;
#pragma unroll
    for (int w = 0; w < W; ++w) v_next[w] = exists(w) ? x[4 * w] : 0.0f;
    decay_next = decays[of];
  };
  int n = kChunk - position % kChunk;
  n = n < count ? n : count;
  bring(0, n, 0);

  float held[16][W];
  float* const state = s.rule + a.rows[first].slot * s.rule_slot +
                       static_cast<std::int64_t>(head) * ((s.value_dim + 15) / 16) * kDim * 16 +
                       group * 16 * 16;
  const auto element = [&](int i, int w) -> float& {
    const int at = column + 4 * w;
    return state[at / 16 * kDim * 16 + i * 16 + at % 16];
  };
#pragma unroll
  for (int w = 0; w < W; ++w)
#pragma unroll
    for (int i = 0; i < 16; ++i) held[i][w] = position != 0 && exists(w) ? element(i, w) : 0.0f;

  // Sums over the lane's key rows; then over all, slot 0 alone.
  const auto walk = [&](const float4* x, float(&sum)[kChunk][W]) {
#pragma unroll
    for (int t = 0; t < kChunk; ++t)
#pragma unroll
      for (int w = 0; w < W; ++w) sum[t][w] = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int t = 0; t < kChunk; ++t) {
        const float4 f = x[(t * 4 + i) * kGroups];
#pragma unroll
        for (int w = 0; w < W; ++w) {
          sum[t][w] = fmaf(held[4 * i][w], f.x, sum[t][w]);
          sum[t][w] = fmaf(held[4 * i + 1][w], f.y, sum[t][w]);
          sum[t][w] = fmaf(held[4 * i + 2][w], f.z, sum[t][w]);
          sum[t][w] = fmaf(held[4 * i + 3][w], f.w, sum[t][w]);
        }
      }
  };
  const auto meet = [&](float(&sum)[kChunk][W]) {
#pragma unroll
    for (int half = kChunk / 2; half > 0; half /= 2)
#pragma unroll
      for (int t = 0; t < half; ++t)
#pragma unroll
        for (int w = 0; w < W; ++w) sum[t][w] = sum[t][w] + shuffle_xor(sum[t + half][w], 4 * half);
  };

  for (int at = 0, buffer = 0; at < count; buffer ^= 1) {
    copy_async_wait<0>();
    block_sync();  // nobody needs the other buffer any more
    const float4 *k = buffers + buffer * buffer_fours + my_key,
                 *record = buffers + buffer * buffer_fours + my_records + group * 4;
    const float own = decay_next, all = shuffle(own, 31);
#pragma unroll
    for (int w = 0; w < W; ++w) v[w] = v_next[w];
    const int here = at, now = n;
    at += n, n = count - at < kChunk ? count - at : kChunk;
    if (n > 0) bring(at, n, buffer ^ 1);

    float p[kChunk][W], o[kChunk][W];
    walk(k, p);
    if (W == 4) warp_sync();  // what was read is read again later: there are no registers for it
    meet(p);
    walk(k + kChunk * kFours / 2, o);
    float4 part[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) part[i] = record[i ^ group / 2];
    const float to_d[kChunk] = {part[0].x, part[0].y, part[0].z, part[0].w,
                                part[1].x, part[1].y, part[1].z, part[1].w},
                to_o[kChunk] = {part[2].x, part[2].y, part[2].z, part[2].w,
                                part[3].x, part[3].y, part[3].z, part[3].w};
    float d[kChunk][W], sum[W];
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const float u = fmaf(-own, p[0][w], v[w]);
      float d_w = 0;
      sum[w] = 0;
#pragma unroll
      for (int t = 0; t < kChunk; ++t) {
        const float x = t == 0 ? u : shuffle_xor(u, 4 * t);
        d_w = fmaf(to_d[t], x, d_w), sum[w] = fmaf(to_o[t], x, sum[w]);
      }
      d[0][w] = group < now ? d_w : 0.0f;
    }
#pragma unroll
    for (int w = 0; w < W; ++w)
#pragma unroll
      for (int t = 1; t < kChunk; ++t) d[t][w] = shuffle_xor(d[0][w], 4 * t);
#pragma unroll
    for (int i = 0; i < 16; ++i)
#pragma unroll
      for (int w = 0; w < W; ++w) held[i][w] = all * held[i][w];
#pragma unroll
    for (int t = 0; t < kChunk; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 f = k[(t * 4 + i) * kGroups];
#pragma unroll
        for (int w = 0; w < W; ++w) {
          held[4 * i][w] = fmaf(f.x, d[t][w], held[4 * i][w]);
          held[4 * i + 1][w] = fmaf(f.y, d[t][w], held[4 * i + 1][w]);
          held[4 * i + 2][w] = fmaf(f.z, d[t][w], held[4 * i + 2][w]);
          held[4 * i + 3][w] = fmaf(f.w, d[t][w], held[4 * i + 3][w]);
        }
      }
    meet(o);
    float* out =
        a.out +
        (static_cast<std::int64_t>(first + here + group) * s.value_heads + head) * s.value_dim +
        column;
#pragma unroll
    for (int w = 0; w < W; ++w)
      if (exists(w) && group < now) out[4 * w] = fmaf(own, o[0][w], sum[w]);
  }
#pragma unroll
  for (int w = 0; w < W; ++w)
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (exists(w)) element(i, w) = held[i][w];
}

}  // namespace

bool can_delta_rule_rows(const DeltaLayer& s) { return s.key_dim == kDim; }

std::size_t rule_rows_scratch(const DeltaLayer& s, int m) {
  return static_cast<std::size_t>(m) *
         static_cast<std::size_t>(s.key_heads * 2 * kDim + s.value_heads * (kRecord + 1)) *
         sizeof(float);
}

void launch_delta_rule_rows(const Queue& q, const RuleArgs& a, const RowSpan* spans, int n,
                            void* scratch) {
  const DeltaLayer& s = a.state;
  float* const qk = static_cast<float*>(scratch);
  float* const records = qk + static_cast<std::size_t>(a.m * s.key_heads) * 2 * kDim;
  float* const decays = records + static_cast<std::size_t>(a.m * s.value_heads) * kRecord;
  const int each = s.value_heads / s.key_heads,
            head_warps = (each + 3) / 4 < kChunk ? (each + 3) / 4 : kChunk;
  const auto input_floats =
      static_cast<std::size_t>(2 * kChunk * kPitch + kChunk * kChunk + head_warps * 4 * kHeadPitch);
  launch(
      q, "chunk_inputs", chunk_inputs,
      dim3{static_cast<unsigned>((a.m + kChunk - 1) / kChunk), static_cast<unsigned>(s.key_heads)},
      32 * kChunk, input_floats * sizeof(float), a, qk, records, decays);
  // Where a scheduler has one warp, all of them work at the pace of its columns; W + 1/3: about
  // what a chunk costs.
  const int schedulers = 4 * (q.blocks > 0 ? q.blocks : q.multiprocessors);
  const auto parts = [&](int w) { return (s.value_dim + 4 * w - 1) / (4 * w); };
  int best = 4, least = 0;
  for (const int w : {4, 3, 2}) {
    const int warps = s.value_heads * parts(w) * (n < kRuns ? n : kRuns),
              cost = (warps + schedulers - 1) / schedulers * (3 * w + 1);
    if (least == 0 || cost < least) least = cost, best = w;
  }
  const int units = s.value_heads * parts(best), of_key = each * parts(best),
            most = (kWarps + of_key - 2) / of_key + 1,  // key heads that kWarps units touch
      keys = most < s.key_heads ? most : s.key_heads;
  const std::size_t shared =
      2 * sizeof(float) *
      static_cast<std::size_t>(keys * kChunk * 4 * kFours + kWarps * kChunk * kRecord);
  const bool by_rows = a.m <= kMaxRows;
  for (int i = 0; i < (by_rows ? 1 : n); i += kRuns) {
    const int many = n - i < kRuns ? n - i : kRuns;
    Runs runs{};
    for (int j = 0; j < many; ++j)
      runs.first[j] = spans[i + j].first, runs.count[j] = spans[i + j].count;
    launch(q, "delta_rule_rows",
           best == 4   ? delta_rule_rows<4>
           : best == 3 ? delta_rule_rows<3>
                       : delta_rule_rows<2>,
           dim3{static_cast<unsigned>((units + kWarps - 1) / kWarps),
                static_cast<unsigned>(by_rows ? a.m : many)},
           32 * kWarps, shared, a, runs, static_cast<const float*>(qk),
           static_cast<const float*>(records), static_cast<const float*>(decays), keys);
  }
}

}  // namespace nibble::NIBBLE_CUDA_NS
