// The gated delta net's causal convolution, with the CPU's sums (simd/delta_net.inl): few rows, a
// thread a channel and row; many, a thread a channel and a run of rows.
#include <type_traits>

#include "backend/cuda/kernels.h"
#include "backend/cuda/math.cuh"
#include "backend/cuda/row_runs.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr int kThreads = 256;

// A block computes row blockIdx.y; a sequence's first block also the rows that see the state, and
// then the state: nobody else reads it. Taps: their number, held in registers so that no load waits
// for another; 0: any.
template <int Taps>
__global__ void __launch_bounds__(kThreads) conv(const __grid_constant__ ConvArgs a) {
  start_next();
  constexpr int kHeld = Taps > 0 ? Taps : 1;
  const int first = static_cast<int>(blockIdx.y), past = (Taps > 0 ? Taps : a.state.taps) - 1,
            channels = a.state.channels, c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const float* weight = a.weight + (c < channels ? c : 0);
  float w[kHeld] = {}, x[kHeld];
#pragma unroll
  for (int i = 0; i < Taps; ++i) w[i] = weight[static_cast<std::int64_t>(i) * channels];
  const bool early = a.m <= kMaxRows;
  if (!early) await_last();
  const int slot = slot_of(a.rows, first, early);
  const bool fresh = load_fresh(&a.rows[first].position) == 0;
  int before = 0;  // rows of the same sequence just before, up to `past`
  while (before < past && before < first && slot_of(a.rows, first - before - 1, early) == slot)
    ++before;
  if (before > 0 && before < past) return;
  const bool leads = before == 0 && past > 0;
  const int count = leads ? run_length(a.rows, first, a.m, early) : 1;
  if (early) await_last();
  if (c >= channels) return;
  float* state = a.state.conv + slot * a.state.conv_slot + c;
  const float* u = a.u + static_cast<std::int64_t>(first) * channels + c;
  const auto row = [&](int r) {
    const bool given = r >= -before;
    const float* at = given ? u : state + static_cast<std::int64_t>(past) * channels;
    const float value = at[static_cast<std::int64_t>(r) * channels];
    return given || !fresh ? value : 0.0f;
  };
  const int own = leads ? past : 1;
  for (int r = 0; r < (own < count ? own : count); ++r) {
    float y;
    if constexpr (Taps > 0) {
#pragma unroll
      for (int i = 0; i < Taps; ++i) x[i] = row(r - past + i);
      y = w[0] * x[0];
#pragma unroll
      for (int i = 1; i < Taps; ++i) y = fmaf(w[i], x[i], y);
    } else {
      y = weight[0] * row(r - past);
      for (int i = 1; i <= past; ++i)
        y = fmaf(weight[static_cast<std::int64_t>(i) * channels], row(r - past + i), y);
    }
    a.y[static_cast<std::int64_t>(first + r) * channels + c] = silu(y);
  }
  if (!leads) return;
    // What is read of the state lies above what was written.
#pragma unroll
  for (int i = 0; i < Taps - 1; ++i) x[i] = row(count - past + i);
#pragma unroll
  for (int i = 0; i < Taps - 1; ++i) state[static_cast<std::int64_t>(i) * channels] = x[i];
  if constexpr (Taps == 0)
    for (int i = 0; i < past; ++i)
      state[static_cast<std::int64_t>(i) * channels] = row(count - past + i);
}

// Many rows: a block has kConvRows of them, a thread a channel and the last inputs in registers. As
// above, a sequence's first block does what sees the state, rows of the next block's too.
constexpr int kConvRows = 16, kConvAhead = 8;
template <int Taps>
__global__ void __launch_bounds__(kThreads, 4) conv_rows(const __grid_constant__ ConvArgs a) {
  start_next(), await_last();
  constexpr int kPast = Taps - 1;
  static_assert(kPast > 0 && kConvRows + kPast <= 32);
  const int window = static_cast<int>(blockIdx.y) * kConvRows, channels = a.state.channels,
            c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x),
            lane = static_cast<int>(threadIdx.x) % 32, row = window + lane;
  const auto same = [&](int back) {
    return row >= back && a.rows[row - back].slot == a.rows[row].slot;
  };
  const bool is = row < a.m, begins = !is || !same(1),
             own = is && lane < kConvRows && (begins || same(kPast));
  const bool exists = c < channels;
  float w[Taps];
#pragma unroll
  for (int i = 0; i < Taps; ++i)
    w[i] = exists ? a.weight[static_cast<std::int64_t>(i) * channels + c] : 0.0f;
  for (int at = 0;;) {
    at = first_lane(own && lane >= at);
    if (at >= kConvRows) return;
    const int first = window + at;
    const bool leads = shuffle(static_cast<int>(begins), at) != 0;
    int end = first_lane(begins && lane > at);  // within the window, but for what sees the state
    const int limit = leads && at + kPast > kConvRows ? at + kPast : kConvRows;
    end = end < limit ? end : limit;
    const int n = end - at, count = leads ? run_length(a.rows, first, a.m, false) : 0;
    at = end;
    if (!exists) continue;
    const Place place = a.rows[first];
    float* state = a.state.conv + place.slot * a.state.conv_slot + c;
    const float* u = a.u + static_cast<std::int64_t>(first) * channels + c;
    float* y = a.y + static_cast<std::int64_t>(first) * channels + c;
    const auto before = [&](int r) {  // row first + r, of the sequence's past where r < 0
      if (r >= 0 || !leads) return u[static_cast<std::int64_t>(r) * channels];
      return place.position == 0 ? 0.0f : state[static_cast<std::int64_t>(kPast + r) * channels];
    };
    float x[kPast + kConvAhead];
#pragma unroll
    for (int i = 0; i < kPast; ++i) x[i] = before(i - kPast);
    for (int r = 0; r < n; r += kConvAhead) {
      const float* from = u + static_cast<std::int64_t>(r) * channels;
      float* to = y + static_cast<std::int64_t>(r) * channels;
      const auto rows = [&](auto all) {
        const int some = decltype(all)::value ? kConvAhead : n - r;
#pragma unroll
        for (int i = 0; i < kConvAhead; ++i) x[kPast + i] = i < some ? from[i * channels] : 0.0f;
#pragma unroll
        for (int i = 0; i < kConvAhead; ++i) {
          float sum = w[0] * x[i];
#pragma unroll
          for (int t = 1; t < Taps; ++t) sum = fmaf(w[t], x[i + t], sum);
          if (i < some) to[i * channels] = silu(sum);
        }
      };
      if (n - r >= kConvAhead)
        rows(std::true_type{});
      else
        rows(std::false_type{});
#pragma unroll
      for (int i = 0; i < kPast; ++i) x[i] = x[kConvAhead + i];
    }
    if (!leads) continue;
#pragma unroll
    for (int i = 0; i < kPast; ++i) x[i] = before(count - kPast + i);
#pragma unroll
    for (int i = 0; i < kPast; ++i) state[static_cast<std::int64_t>(i) * channels] = x[i];
  }
}

}  // namespace

void launch_conv(const Queue& q, const ConvArgs& a) {
  const unsigned x = static_cast<unsigned>((a.state.channels + kThreads - 1) / kThreads);
  const auto m = static_cast<unsigned>(a.m);
  if (a.m > kMaxRows && a.state.taps == 4)  // the published models'
    return launch(q, "conv_rows", conv_rows<4>, dim3{x, (m + kConvRows - 1) / kConvRows}, kThreads,
                  0, a);
  launch(q, "conv", a.state.taps == 4 ? conv<4> : conv<0>, dim3{x, m}, kThreads, 0, a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
