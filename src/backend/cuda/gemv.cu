// Launches of gemv.cuh: how a launch divides its work, and with which kernel.
#include "backend/cuda/gemv.cuh"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

static_assert(sizeof(Output) % 16 == 0 && kMaxPieces * sizeof(Segments) % 16 == 0);

// What a launch asks for; returns its bytes of shared memory without rows of x.
std::size_t divide(const MultiplyArgs& from, int slot, GemvArgs& a) {
  const Matrix& w = from.out[0].w;
  const int groups = w.stage_groups();
  a = {};
  a.source = from.source, a.fixed = from.fixed;
  a.tasks = from.tasks, a.task_count = from.task_count;
  a.ids = from.ids, a.picks = from.picks, a.experts = from.experts;
  a.x_step = from.m > 1;
  a.outputs = from.outputs, a.m = from.m, a.int8 = from.int8;
  a.swiglu = from.finish == Finish::SwiGlu, a.pieces = from.finish == Finish::Pieces;
  a.others = from.others, a.other_matrix = from.other_matrix;
  for (int i = 0; i < a.outputs + a.others; ++i) {
    const Product& p = from.out[i];
    const bool more = i < (a.swiglu ? 1 : a.outputs);
    a.out[i] = {p.w.codes, p.w.scales, p.bias, p.y, p.ldy, p.w.n, a.swiglu || !more ? 0 : a.jobs};
    if (more) a.jobs += p.w.tiles;
  }
  a.stages = w.stages, a.groups = w.groups, a.group_shift = w.record_shift();
  a.tree = w.pieces > 1;
  a.parts = a.tree ? w.pieces : segment_count(w.stages);
  for (int i = 0; i < kMaxPieces; ++i)
    a.part_end[i] = i >= a.parts ? w.stages : a.tree ? w.piece_end[i] : segment_end(w.stages, i);
  a.task_items = a.swiglu ? 2 * a.jobs : a.jobs, a.by_task_items = divider(a.task_items);
  a.known = from.known, a.choice = from.choice;
  a.width = from.ids != nullptr         ? 1
            : from.tasks == nullptr     ? from.m
            : from.task_rows < kMaxRows ? from.task_rows
                                        : kMaxRows;
  const int item = a.parts * a.width * kTile;
  // Parts of a stage or two are too short for a warp each.
  int least = w.stages, longest = 0;
  for (int i = 0; i < a.parts; ++i) {
    const int stages = a.part_end[i] - (i == 0 ? 0 : a.part_end[i - 1]);
    least = stages < least ? stages : least, longest = stages > longest ? stages : longest;
  }
  a.parts_of_warp = a.parts < kMaxPieces || least < 1 || longest > 2 ? 1 : longest == 1 ? 4 : 2;
  while (a.parts_of_warp > 1 && 2 * a.parts_of_warp * item > kRoundFloats) a.parts_of_warp /= 2;
  a.team_warps = 1;
  while (a.team_warps * a.parts_of_warp < a.parts) a.team_warps *= 2, ++a.team_shift;
  const bool even = a.tree && a.parts == kMaxPieces && least == longest;
  if (even && a.parts_of_warp == 1 && from.ids == nullptr && from.tasks == nullptr)
    a.split = segment_count(longest) / 2;
  // Whole turns of all teams, whole jobs.
  const int teams = kRowWarps / a.team_warps, unit = teams > 2 ? teams : 2,
            most = kRoundFloats / item < kRoundItems ? kRoundFloats / item : kRoundItems;
  a.round_items = most > unit ? most / unit * unit : unit;
  return static_cast<std::size_t>(2 * kRowWarps * slot_bytes(slot, groups)) + sizeof a.out +
         kShares * kMaxPieces * sizeof(Segments) + kRowWarps * sizeof(Course) +
         static_cast<std::size_t>(2 * kRowWarps + 2 * a.round_items * item +
                                  (a.split > 0) * kMaxPieces * kMaxHalf * a.width * kTile) *
             sizeof(float);
}
std::size_t row_bytes(const MultiplyArgs& a) {
  return static_cast<std::size_t>(a.m) * static_cast<std::size_t>(a.out[0].w.stages) *
         (128 + sizeof(RowMeta));
}

}  // namespace

bool can_gemv(const Queue& q, const MultiplyArgs& a) {
  const Matrix& first = a.out[0].w;
  for (int i = 0; i < a.outputs; ++i) {
    const Matrix& w = a.out[i].w;
    if (w.type != kInt4 || w.scale_bytes != 2 || w.stage_groups() == 0) return false;
    if (w.group_shift != first.group_shift) return false;
  }
  GemvArgs b;
  return (a.tasks != nullptr || a.ids != nullptr || a.m <= kMaxRows) &&
         divide(a, kShortSlot, b) <= q.shared_limit;
}

bool can_fuse_gemv(const Queue& q, const MultiplyArgs& a) {
  GemvArgs b;
  const bool chosen = a.tasks != nullptr || a.ids != nullptr;
  return can_gemv(q, a) && rows_in_registers(a.source) &&
         a.source.kind <= (chosen ? Source::Plain : Source::Norm) &&
         divide(a, kShortSlot, b) + row_bytes(a) <= q.shared_limit;
}

bool can_choose(const MultiplyArgs& a, const Choice& c) {
  return a.m <= kMaxRows && static_cast<std::size_t>(a.m) * top_k_bytes(a.out[0].w.n, c.k) <=
                                static_cast<std::size_t>(2 * kRowWarps * slot_bytes(kShortSlot, 1));
}

void launch_gemv(const Queue& q, const MultiplyArgs& from) {
  GemvArgs a;
  const bool chosen = from.tasks != nullptr || from.ids != nullptr;
  const bool fused = from.fixed.words == nullptr;
  const std::size_t rows = row_bytes(from), least = fused ? rows : 0;
  const bool is_short = divide(from, kLongSlot, a) + least > q.shared_limit;
  const int slot = is_short ? kShortSlot : kLongSlot;
  const int groups = from.out[0].w.stage_groups();
  std::size_t shared = divide(from, slot, a) + least;
  const std::size_t more = rows + static_cast<std::size_t>(from.m) * sizeof(RowMeta);
  const bool copied = !fused && shared + more <= q.shared_limit, own = fused || copied;
  if (copied) shared += more;
  const bool whole = fused && !chosen && from.source.kind == Source::Norm && !a.tree && !a.pieces &&
                     a.parts_of_warp == 1 && a.width <= kMaxRows / 2;
  if (whole) shared = whole_bytes(a, slot, groups) + rows;
  a.meta_pitch = a.stages + copied;  // so that rows lie in different banks
  if (own) a.copy_rows = a.m;
  shared = alone(q, shared);
  a.ahead = a.width > 4 ? 0 : q.ahead / kRowWarps / kCodeBytes;
  const int most = q.blocks > 0 ? q.blocks : q.multiprocessors,
            jobs = chosen ? a.jobs * from.max_tasks : a.jobs;
  const Rows rows_from = copied                              ? Rows::Copied
                         : !fused                            ? Rows::Global
                         : from.source.kind == Source::Plain ? Rows::Plain
                         : is_few(from.source)               ? Rows::NormOfFew
                                                             : Rows::NormOfMany;
  const bool wanted = from.conv.y != nullptr,
             conv = wanted && a.width > 4 && copied && groups == 1 && can_convolve(from.conv.state);
  a.conv = from.conv;
  const GemvKernel kernel = (groups == 2   ? a.width > 4 ? kernel_of<2, 2> : kernel_of<1, 2>
                               : a.width > 4 ? kernel_of<2, 1>
                                           : kernel_of<1, 1>)(slot, rows_from, chosen, conv);
  const int blocks = jobs < most ? jobs : most;
  a.all_jobs = jobs, a.by_blocks = divider(blocks);
  a.jobs_each = jobs / blocks, a.jobs_more = jobs % blocks;
  a.columns = (a.source.k + blocks - 1) / blocks;
  const dim3 grid{static_cast<unsigned>(blocks)};
  if (whole)
    launch_gemv_whole(q, a, slot, groups, is_few(from.source), grid, shared);
  else if (a.width > 4)
    launch<Begin::Wide>(q, "gemv", kernel, grid, kRowThreads, shared, a);
  else
    launch<Begin::Stream>(q, "gemv", kernel, grid, kRowThreads, shared, a);
  if (wanted && !conv) launch_conv(q, from.conv);
}

}  // namespace nibble::NIBBLE_CUDA_NS
