// gemv.cuh for up to 4 rows under a norm and matrices of one piece: residual + delta, RMSNorm and
// product in one launch. The same division of work and the same bits; apart from it since here the
// way from the launch before to the first product decides, and registers: what the compiler keeps
// in local memory comes back through the second cache, for what is left of the first one beside
// shared memory holds nothing that long. So a warp's part of an item is one segment, what it looks
// at once an item lies in shared memory, what derives from the thread is read anew, and before the
// wait stands as little as can be: the launch before makes its own rows of x in that time.
#include "backend/cuda/gemv.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

// Where a warp is; each lane writes the same, once all have read, and reads it once all have
// written.
struct Turn {
  int item, end, step, first;   // of its stream: next item, the end; of each: its first stage
  int own, limit, last, place;  // the item it sums, the end; its last stage, its place in sums
  int stores, unused[3];        // whether it has columns of the row to store
};

__device__ __forceinline__ int part_of(const GemvArgs& a, int warp) {
  return warp & (a.team_warps - 1);
}

// stream.cuh's, of this.
template <int Slot, int Groups>
struct WholeStream {
  char* slot;          // + 16 lane
  int other, left, s;  // left: stages of the item; 0: nothing is left at all; s: Groups a stage
  const std::uint8_t *codes, *scales;  // + 16 lane
  ReadOnce once;

  __device__ __forceinline__ void locate(const GemvArgs& a, const Output* outputs, const Turn& turn,
                                         int item) {
    int out = 0, tile = item;
    if (a.swiglu)
      out = tile % 2, tile /= 2;
    else
      while (out + 1 < a.outputs && tile >= outputs[out + 1].first) ++out;
    const Output& o = outputs[out];
    // 32 bits count the stages and groups of any matrix that fits into memory.
    const unsigned at = static_cast<unsigned>(tile - o.first), lane = thread_again() % 32;
    const int first = turn.first;
    codes = o.codes + std::uint64_t{at * static_cast<unsigned>(a.stages) + first} * kCodeBytes +
            lane * 16;
    scales = o.scales + std::uint64_t{at * static_cast<unsigned>(a.groups)} * kScaleBytes +
             lane % 2 * 16;
    s = first * Groups + static_cast<int>(lane / 2), left = turn.last - first;
  }
  // Asks the second cache for what comes next, up to a.ahead stages of the same item.
  __device__ __forceinline__ void ask(const GemvArgs& a) const {
    constexpr int kLine = 128, kMost = 28;  // bytes; lanes that ask for codes
    const int lane = static_cast<int>(thread_again() % 32), next = s - lane / 2;
    int stages = left < a.ahead ? left : a.ahead;
    if (stages > kMost * kLine / kCodeBytes) stages = kMost * kLine / kCodeBytes;
    if (lane < stages * (kCodeBytes / kLine)) prefetch_line(codes + lane * (kLine - 16));
    const int at = Groups == 1 ? lane == kMost ? next : next + stages - 1  // first and last scales
                               : next + (lane - kMost) * (Groups * stages - 1) / 3;
    if (lane >= kMost && lane < kMost + 2 * Groups && stages > 0)
      prefetch_line(scales + (at >> a.group_shift) * kScaleBytes);
  }
  __device__ __forceinline__ void bring(const GemvArgs& a, const Output* outputs, Turn& turn) {
    if (left > 0) {
      const int stages = left < Slot ? left : Slot;
      bring_stages<Slot, Groups>(slot, codes, scales + (s >> a.group_shift) * kScaleBytes, stages,
                                 once);
      codes += stages * kCodeBytes, s += stages * Groups, left -= stages;
      if (left == 0) {
        const int item = turn.item + turn.step;
        warp_sync();  // all have read it
        turn.item = item;
        if (item < turn.end) locate(a, outputs, turn, item);
      }
    }
    copy_async_commit();
    slot += other, other = -other;
  }
};

template <int Slot, int Groups, Rows From>
__global__ void __launch_bounds__(kRowThreads, 2) gemv_whole(const __grid_constant__ GemvArgs a) {
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  start_next();
  char* const memory = shared_memory();
  constexpr int kSlotBytes = slot_bytes(Slot, Groups);
  Output* const outputs = reinterpret_cast<Output*>(memory + 2 * kRowWarps * kSlotBytes);
  Turn* const turns = reinterpret_cast<Turn*>(outputs + kMaxOutputs);
  float* const scratch = reinterpret_cast<float*>(turns + kRowWarps);
  float* const sums = scratch + 2 * kRowWarps;
  constexpr bool kFew = From == Rows::NormOfFew;
  const int each = a.width * kTile, item_floats = a.parts * each,
            round_floats = a.round_items * item_floats;
  char* const words = reinterpret_cast<char*>(sums + 2 * round_floats);
  RowMeta* const meta = reinterpret_cast<RowMeta*>(words + a.m * a.stages * 128);
  constexpr int kWords = kMaxOutputs * static_cast<int>(sizeof(Output) / sizeof(int));
  if (tid < kWords) reinterpret_cast<int*>(outputs)[tid] = reinterpret_cast<const int*>(a.out)[tid];
  block_sync();

  const int block = static_cast<int>(blockIdx.x), pair = a.swiglu, per_job = 1 + pair;
  const auto job_of = [&](int b) { return a.jobs_each * b + (b < a.jobs_more ? b : a.jobs_more); };
  const int first = job_of(block) * per_job, until = job_of(block + 1) * per_job;
  NormRows<kFew ? kFewStages : kHeldStages, true> rows(a.source);
  char* slot = memory + warp * (2 * kSlotBytes);  // in use
  int other = kSlotBytes;
  WholeStream<Slot, Groups> stream{};
  stream.slot = slot + lane * 16, stream.other = other;
  Turn& turn = turns[warp];
  {
    const int part = part_of(a, warp), item = first + (warp >> a.team_shift),
              limit = part < a.parts ? until : first;
    turn.item = item, turn.end = limit, turn.step = kRowWarps >> a.team_shift;
    turn.own = item, turn.limit = limit, turn.place = part * each;
    turn.first = part == 0 ? 0 : a.part_end[part - 1], turn.last = a.part_end[part];
    warp_sync();
    if (item < limit) stream.locate(a, outputs, turn, item);
  }
#pragma unroll 1
  for (int i = 0; i < 2; ++i) stream.bring(a, outputs, turn), warp_sync();
  stream.ask(a);
  rows.ready(a.source);
  const auto slice = [&] { return Slice{a.columns * block, a.columns * (block + 1)}; };
  turn.stores = rows.has(slice());
  warp_sync();
  await_last();
#pragma unroll 1
  for (int r = 0; r < a.m; ++r)
    rows.template make<(Groups > 1)>(a.source, r, r, a.int8, turn.stores != 0, slice,
                                     {words + r * a.stages * 128}, meta + r * a.stages, scratch);
  block_sync();

  const int again = block_again(), begin = job_of(again) * per_job,
            end = job_of(again + 1) * per_job;
  // One round if all fits.
  const int round_items = end - begin <= 2 * a.round_items ? 2 * a.round_items : a.round_items;
#pragma unroll 1
  for (int at = begin, which = 0; at < end; at += round_items, which ^= 1) {
    float* const round = sums + which * round_floats;
    const int stop = at + round_items < end ? at + round_items : end;
#pragma unroll 1
    for (;;) {
      const Turn& now = turns[thread_again() / 32];
      const int item = now.own;
      if (item >= now.limit || (stop < end && item >= stop)) break;
      const int own_lane = static_cast<int>(thread_again() % 32);
      int in = own_lane / 8, of = own_lane % 4;  // where there is no such row: others', for nobody
      in = in < a.m ? in : 0, of = of < a.m ? of : 0;
      const uint4* x[1] = {reinterpret_cast<const uint4*>(words) + in * a.stages * 8 +
                           own_lane / 4 % 2 * 4 + own_lane % 4};
      const RowMeta* y[1] = {meta + of * a.meta_pitch};
      float* const to = round + (item - at) * item_floats + now.place + own_lane / 4;
      float acc[1][2] = {};
      int s = now.first;
      const int here = now.last;
#pragma unroll 1
      while (s < here) {
        const int stages = here - s < Slot ? here - s : Slot;
        copy_async_wait<1>();
        warp_sync();
        const char *codes = slot + own_lane * 16,
                   *scales = slot + Slot * kCodeBytes + own_lane / 4 * 4;
        const auto add = [&](int j) {
          add_stage<1, Groups>(codes + j * kCodeBytes, scales + j * Groups * kScaleBytes, x, y,
                               s + j, acc);
        };
        each_stage<Slot>(stages, add);
        s += stages;
        warp_sync();  // all have read the slot
        stream.bring(a, outputs, turns[thread_again() / 32]);
        slot += other, other = -other;
      }
      const int m = own_lane % 4;
      if (m < a.m) to[m * kTile] = acc[0][0], to[m * kTile + 8] = acc[0][1];
      Turn& last = turns[thread_again() / 32];
      const int next = last.own + last.step;
      warp_sync();  // all have read it
      last.own = next;
      warp_sync();
    }
    block_sync();
    const int thread = static_cast<int>(thread_again());
    // Sums of segments, bias, SwiGLU: by 16 threads a (job, row of x).
#pragma unroll 1
    for (int i = thread / kTile; i < ((stop - at) >> pair) * a.width; i += kRowThreads / kTile) {
      const int of = a.width == 1 ? i : i / a.width, job = (at >> pair) + of, m = i - of * a.width;
      int out = 0;
      if (!a.swiglu)
        while (out + 1 < a.outputs && job >= outputs[out + 1].first) ++out;
      const Output& o = outputs[out];
      const int n = (job - o.first) * kTile + thread % kTile;
      if (n >= o.n) continue;
      const float* from = round + of * per_job * item_floats + m * kTile + thread % kTile;
      float v[2] = {};
#pragma unroll 1
      for (int up = 0; up < per_job; ++up, from += item_floats) {
        float p[kMaxPieces], sum = 0;
#pragma unroll
        for (int j = 0; j < kMaxPieces; ++j) p[j] = j < a.parts ? from[j * each] : 0.0f;
#pragma unroll
        for (int j = 0; j < kMaxPieces; ++j) sum = sum + p[j];  // of no part 0, which adds nothing
        const float* bias = outputs[a.swiglu ? up : out].bias;
        if (bias != nullptr) sum = sum + bias[n];
        if (up == 0)
          v[0] = sum;
        else
          v[1] = sum;
      }
      o.y[static_cast<std::int64_t>(m) * o.ldy + n] = a.swiglu ? silu(v[0]) * v[1] : v[0];
    }
  }
  if (a.choice.k > 0) choose_at_last(a.choice, a.out[0].y, a.out[0].ldy, a.out[0].n, a.m);
}

template <int Groups>
GemvKernel whole_of(int slot, bool few) {
  constexpr Rows kFew = Rows::NormOfFew, kMany = Rows::NormOfMany;
  return slot == kShortSlot
             ? few ? gemv_whole<kShortSlot, Groups, kFew> : gemv_whole<kShortSlot, Groups, kMany>
         : few ? gemv_whole<kLongSlot, Groups, kFew>
               : gemv_whole<kLongSlot, Groups, kMany>;
}

}  // namespace

std::size_t whole_bytes(const GemvArgs& a, int slot, int groups) {
  const int round_floats = a.round_items * a.parts * a.width * kTile;
  return static_cast<std::size_t>(2 * kRowWarps * slot_bytes(slot, groups)) + sizeof a.out +
         kRowWarps * sizeof(Turn) +
         static_cast<std::size_t>(2 * kRowWarps + 2 * round_floats) * sizeof(float);
}

void launch_gemv_whole(const Queue& q, const GemvArgs& a, int slot, int groups, bool few, dim3 grid,
                       std::size_t shared) {
  const auto kernel = (groups == 2 ? whole_of<2> : whole_of<1>)(slot, few);
  launch<Begin::Stream>(q, "gemv", kernel, grid, kRowThreads, shared, a);
}

}  // namespace nibble::NIBBLE_CUDA_NS
