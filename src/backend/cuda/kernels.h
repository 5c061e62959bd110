// The CUDA kernels' launchers and their arguments: plain data, device pointers.
//
// Every kernel follows the CPU's order of operations (docs/design.md, "The promise"), so that the
// bits are the CPU's, whatever the grid, the number of rows or the plan.
#pragma once
#include <cstdint>

#include "backend/cuda/divider.h"
#include "backend/cuda/runtime.h"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr int kTile = 16;    // rows of W a matrix instruction takes
inline constexpr int kStage = 64;   // columns that share an activation scale (ops/pieces.h)
inline constexpr int kMaxRows = 8;  // rows of x a block multiplies at once
inline constexpr int kMaxOutputs = 4;
inline constexpr int kMaxPieces = 8;

enum Type : int { kInt4, kInt4Aff, kInt8, kF16, kBF16, kF32 };  // as WeightType

// One activation block of K: 1 or 2 chunks of 32 columns, in 1 or 2 units (ops/pieces.h).
struct Stage {
  int column;  // first
  int chunks;
  int units;
  int group;  // of the first chunk; the second unit's is the next
};

// A packed matrix: tiles of 16 rows; a tile is `stages` stages one after the other, a stage 64
// columns (zeros past the end). Of lane 4 g + t, 16 bytes each:
//   int4   word c of 0..3: row g (c even) or g + 8, chunk c / 2; byte j holds columns 4 t + j (low
//          nibble) and 16 + 4 t + j (high): the fragment of mma.m16n8k32 after one AND
//   int8   chunk 0, then at 512 bytes chunk 1: the fragment itself
//   plain  part p of 16 bytes: [p][row][columns of the part]
// and its scales [tile][group] records: 16 scales, then 16 offsets (int4-affine), fp16 or fp32,
// both as scale_place() says.
constexpr int scale_place(int row) { return row % 8 * 2 + row / 8; }  // a lane's two side by side
struct Matrix {
  int type = kF16;
  int scale_bytes = 2;  // of one scale
  int stages = 0, stage_bytes = 0;
  int groups = 0, record_bytes = 0;
  int max_units = 1;
  int entries = 1;  // pairs a stage adds to a row's sum (multiply.cuh)
  int n = 0, k = 0;
  int tiles = 0;  // of one matrix of the stack
  int pieces = 1;
  int piece_end[kMaxPieces] = {};  // stages
  bool regular = false;            // stage s begins at column 64 s
  bool fits_half = false;          // no weight is too large for fp16
  int group_shift = -1;            // stage s has scales s >> group_shift, and no others; -1: not so
  // Groups that a stage has scales of, for the kernels of few rows: 1, 2 (of 32 columns each); 0:
  // neither.
  int stage_groups() const {
    return !regular ? 0 : group_shift >= 0 ? 1 : max_units == 2 && groups == 2 * stages ? 2 : 0;
  }
  // Where stage_groups() > 0: the g-th of stage s is (s * stage_groups() + g) >> record_shift().
  int record_shift() const { return group_shift >= 0 ? group_shift : 0; }
  const std::uint8_t* codes = nullptr;
  const std::uint8_t* scales = nullptr;
  const Stage* plan = nullptr;
};

// Rounded rows: [row][stage][limb: high, low][t] 16 bytes, the fragments of mma's B; and per stage
// the scale and the sums of q over its chunks.
struct alignas(16) RowMeta {
  float scale;
  int minus8;  // -8 times the sums of q
  int sum[2];
};
struct Fixed {
  void* words = nullptr;    // 128 bytes a row and stage
  RowMeta* meta = nullptr;  // [row][stage]
  bool straight = false;    // a limb's 64 bytes in the order of their columns: for gemm_wide.cu
  // For gemm_half.cu: words are 64 halves a row and stage instead, times this [row].
  float* row_scale = nullptr;
};

// Where rows of x come from.
struct Source {
  enum Kind : int { Plain, Norm, GatedNorm } kind = Plain;
  const float* x = nullptr;      // [M, K]: x, residual or o
  const float* other = nullptr;  // delta (may be null) or z
  const float* weight = nullptr;
  float eps = 0, offset = 0;
  int k = 0, dim = 0;             // dim: of a head, GatedNorm
  float* residual_out = nullptr;  // or null
  float* normed = nullptr;        // or null
};

struct Product {
  Matrix w;
  const float* bias = nullptr;
  float* y = nullptr;
  std::int64_t ldy = 0;
};

// Rows of x that one block multiplies with one matrix of a stack.
struct Task {
  int matrix, rows;
  int x[kMaxRows], y[kMaxRows];  // row of x, row of y
};

// Rows that one block of gemm takes: pairs of one expert, `rows` of `order` from `begin` on.
inline constexpr int kGemmRows = 64;
struct RowGroup {
  int matrix, begin, rows;
};

// Of the router: experts of the k largest logits of a row, and their softmax.
struct Choice {
  int k = 0;  // 0: none
  int* ids = nullptr;
  float* weights = nullptr;
  int* arrived = nullptr;  // gemv's blocks; 0 between launches
};
// Of shared memory, a token.
constexpr std::size_t top_k_bytes(int experts, int k) {
  return (static_cast<std::size_t>(experts) * 5 + static_cast<std::size_t>(k) * 4 + 15) / 16 * 16;
}

struct Place {  // as RowPlace
  int slot, position;
};
// One layer of a gated delta net's state, as the CPU keeps it: conv [slot][tap][channel], oldest
// first; rule [slot][head][value_dim / 16][key_dim][16].
struct DeltaLayer {
  float *conv, *rule;
  int key_heads, value_heads, key_dim, value_dim, taps, channels;
  std::int64_t conv_slot, rule_slot;  // floats of a slot
};
struct ConvArgs {
  const float *u, *weight;
  int m;
  const Place* rows;
  DeltaLayer state;
  float* y;
};

enum class Finish : int { Store, SwiGlu, Pieces };  // Pieces: y [row][piece][ldy], not added

struct MultiplyArgs {
  Source source;
  int m = 0;
  int int8 = 0;  // activations of 8 bits
  Product out[kMaxOutputs];
  int outputs = 0;
  Finish finish = Finish::Store;
  // Rows prepared before, or null: every block prepares them itself (m <= 8).
  Fixed fixed;
  const float* real = nullptr;  // [rows, K] for products in fp32
  const Task* tasks = nullptr;  // of a mixture: block y's rows; null: rows 8 y ..
  // gemv: tasks of this matrix take out[others ..] instead of out[0 ..], which are like these.
  int others = 0, other_matrix = -1;
  const int* task_count = nullptr;
  // gemv, of one token instead of tasks: its `picks` experts, of `experts` (others: any weights,
  // for nobody), and where there are others one task more, theirs. Row i of y is task i's.
  const int* ids = nullptr;
  int picks = 0, experts = 0;
  bool known = false;  // gemv: one before has had these tasks, or ids, and let none come earlier
  int max_tasks = 0, task_rows = 0;  // task_rows: no task has more
  // gemm's tasks of a mixture: rows of y are those of `order`, of x these / pairs.
  const RowGroup* groups = nullptr;
  const int* order = nullptr;
  int pairs = 1;
  // Of the launch, chosen by launch_multiply:
  int jobs = 0, round_stages = 0, slot_bytes = 0, entry_stride = 0, h_rows = 0;
  float* piece_sums = nullptr;  // [rows][kMaxPieces][ldy]
  Choice choice;                // gemv's, from rows of out[0].y, where can_choose()
  ConvArgs conv = {};           // gemv's: of out[0].y, rows of different sequences; null y: none
};

// Whether m rows of this source can be prepared by every block itself.
bool can_fuse(const Queue& q, const MultiplyArgs& a, bool fixed);
// All products: with integer inputs (fixed), or in fp32.
void launch_multiply(const Queue& q, MultiplyArgs a, bool fixed);
// The same, faster, for up to 8 rows or tasks, where weights and source allow it.
bool can_gemv(const Queue& q, const MultiplyArgs& a);
bool can_fuse_gemv(const Queue& q, const MultiplyArgs& a);
bool can_choose(const MultiplyArgs& a, const Choice& c);  // where can_gemv()
void launch_gemv(const Queue& q, const MultiplyArgs& a);
// gemv_plain.cu: of weights in fp32, fp16 or bf16; makes choices where a.choice has any.
bool can_gemv_plain(const Queue& q, const MultiplyArgs& a);
void launch_gemv_plain(const Queue& q, const MultiplyArgs& a);
// The same of 5 to 8 rows under a norm, of which each is made by one of the blocks into `fixed`,
// two tiles at a time: how many blocks there will be, or 0. turns: counts of rows asked for and of
// rows made, of all launches so far that had these (a launch: blocks + m and m more), with as many
// blocks and rows; the next kTurns - 1 launches have others, since some may overlap.
inline constexpr int kMaxSharers = 1024, kTurns = 4;
int gemv_pairs_blocks(const Queue& q, const MultiplyArgs& a);
void launch_gemv_pairs(const Queue& q, const MultiplyArgs& a, std::uint64_t* turns);
// The same of plain rows and one row-parallel matrix whose pieces are equally long, a piece a
// block. scratch: as many floats as gemv_pieces_scratch() says; arrived: kMaxRuns zeros, before and
// after.
inline constexpr int kMaxRuns = 256;
bool can_gemv_pieces(const Queue& q, const MultiplyArgs& a);
std::size_t gemv_pieces_scratch(const MultiplyArgs& a);
void launch_gemv_pieces(const Queue& q, const MultiplyArgs& a, float* scratch, int* arrived);
// The same for many rows (prepared before, in `fixed`), where the weights allow it: the same bits.
// scratch: as many floats as gemm_scratch() says.
bool can_gemm(const MultiplyArgs& a);
std::size_t gemm_scratch(const MultiplyArgs& a);
void launch_gemm(const Queue& q, MultiplyArgs a, float* scratch);
void launch_gemm_wide(const Queue& q, MultiplyArgs a, float* scratch);  // of straight rows
// In fp16, on Hopper, any number of rows (prepared by launch_prepare_half): not decode's bits.
bool can_gemm_half(const MultiplyArgs& a);
void launch_gemm_half(const Queue& q, MultiplyArgs a);
void launch_prepare_half(const Queue& q, const Source& s, int m, int stages, const Fixed& to);
// Rows of a source, prepared once: rounded into `fixed` (words not null), in fp32 into `real` (not
// null), in the stages of w. room: as many floats as prepare_room() says; null: 0.
std::size_t prepare_room(const Queue& q, const Source& s, int m);
void launch_prepare(const Queue& q, const Source& s, int m, int int8, const Matrix& w,
                    const Fixed& fixed, float* real, float* room);
void launch_read(const Queue& q, const void* p, std::size_t bytes, int* sum);
void launch_swiglu(const Queue& q, const float* gate, const float* up, std::int64_t n, float* y);
void launch_embedding(const Queue& q, const Matrix& w, const int* ids, int m, float* h);
// bytes (a multiple of 4) of pinned memory as they are when it runs, for early readers too: no
// launch overlaps it.
void launch_take(const Queue& q, void* to, const void* pinned, std::size_t bytes);
void launch_gather(const Queue& q, const float* src, const int* rows, int m, std::int64_t width,
                   float* dst);

// One layer of a KV cache. Keys [slot][head][position / 64][head_dim / 8][64][8]: 16 bytes of int16
// are 8 dims of a position, and positions lie side by side; values
// [slot][head][position][head_dim]; scales (int16 only) [slot][head][position].
struct KvLayer {
  void *keys, *values;
  float *key_scales, *value_scales;
  int fixed;  // int16, else fp32
  int kv_heads, head_dim, positions;
  int* arrived;  // attend_step's own, of any layer: [kMaxRows][kv_heads][kAttendCluster] zeros
};
inline constexpr int kAttendCluster = 8;
struct RopeArgs {
  const float *q, *k, *v;
  const float *q_norm, *k_norm;  // or null
  float offset, eps;
  const float* cos_sin;
  int m, heads, q_pitch, rotary;
  const Place* rows;
  KvLayer cache;
  float* q_out;
};
void launch_rope_cache(const Queue& q, const RopeArgs& a);

struct AttendArgs {
  const float* q;
  const float* gate;  // or null
  int gate_pitch, m, heads;
  float scale;
  const Place* rows;
  KvLayer cache;
  float* out;
  float* parts;  // [m][heads][splits][2 + head_dim]; attend_step: [..][kAttendCluster][2 + eighth]
  int splits;    // of the longest row
  bool in_runs;  // rows 8 i .. 8 i + 7 are of one sequence
};
void launch_attention(const Queue& q, const AttendArgs& a);

// rope_cache and attention in one launch (attention_step.cu), for up to kMaxRows rows of different
// sequences. Of `rope` q_out, and of `attend` q and rows, are not looked at.
struct AttendStepArgs {
  RopeArgs rope;
  AttendArgs attend;
};
bool can_attend_step(const Queue& q, const RopeArgs& a);
void launch_attend_step(const Queue& q, const AttendStepArgs& a);
inline constexpr int kAttendRows = 8;
void launch_attend_rows(const Queue& q, const AttendArgs& a);  // its part where rows are in runs

// The same in fp16 (attention_half.cu). A group: rows of one sequence and one block of 64
// positions, both consecutive; a sequence: what its rows see of the cache, in tiles of 64
// positions.
inline constexpr int kHalfGroups = 64;
struct HalfGroup {
  int row, rows, position, sequence;  // first row, and its position
};
struct HalfSequence {
  int slot, blocks, tile;  // tile: of block 0 of kv head 0; [kv head][block] follow
};
struct HalfAttendArgs {
  AttendArgs of;  // without rows, parts, splits
  void* tiles;    // half_tile_bytes() each
  int groups, sequences;
  HalfGroup group[kHalfGroups];  // those with the longest past first
  HalfSequence sequence[kHalfGroups];
};
bool can_attend_half(const Queue& q, const KvLayer& c);
std::size_t half_tile_bytes(int head_dim);
void launch_attention_half(const Queue& q, const HalfAttendArgs& h);

void launch_conv(const Queue& q, const ConvArgs& a);
struct RuleArgs {
  const float *qkv, *a, *b, *a_log, *dt_bias;
  float eps;
  int m;
  const Place* rows;
  DeltaLayer state;
  float* out;
};
// Bytes of scratch that a launch of m rows needs.
std::size_t rule_scratch(const DeltaLayer& s, int m);
void launch_delta_rule(const Queue& q, const RuleArgs& a, void* scratch);
// The same in chunks of eight tokens, in another order of sums: for Activations::Half. spans: each
// sequence's rows.
struct RowSpan {
  int first, count;
};
bool can_delta_rule_rows(const DeltaLayer& s);
std::size_t rule_rows_scratch(const DeltaLayer& s, int m);
void launch_delta_rule_rows(const Queue& q, const RuleArgs& a, const RowSpan* spans, int n,
                            void* scratch);
// Of up to kMaxRows rows, and heads whose dims are these: the gated norm and rounding as well.
inline constexpr int kDeltaStepDim = 128;
struct DeltaStepArgs {
  RuleArgs rule;
  const float *z, *norm;
  float norm_eps;
  int int8;
  Fixed fixed;      // rounded, not straight
  Divider by_each;  // value heads of a key head
};
void launch_delta_step(const Queue& q, const DeltaStepArgs& a);

void launch_top_k(const Queue& q, const float* logits, int m, int experts, const Choice& c);
// Groups the (token, slot) pairs of ids [m, k] by expert, up to 8 a task. In `up`, x is the token;
// in `down`, the pair; y is the pair in both. shared: and matrix `experts` for each of up to 8
// tokens, as pairs m k and on. Which task comes first is up to chance.
void launch_group(const Queue& q, const int* ids, int m, int k, int experts, bool shared, Task* up,
                  Task* down, int* count);
// The same in groups of up to kGemmRows, for gemm; order [m * k].
void launch_group_rows(const Queue& q, const int* ids, int m, int k, int experts, RowGroup* groups,
                       int* order, int* count);
struct MixArgs {
  const float* parts;         // [m * k][8][n]
  const float* shared_parts;  // [m][8][n]
  const int* ids;             // [m, k]: a token whose ids are no experts gets NaN
  const float* weights;       // [m, k]
  const float* shared;        // [m]
  int m, k, n, experts;
  float* y;  // [m, n]
};
void launch_mix(const Queue& q, const MixArgs& a);
void launch_mix_rows(const Queue& q, const MixArgs& a);  // parts are whole: [m * k][n], [m][n]

// down and mix of up to kMaxRows tokens in one launch, after gemv's gate and up of the same tasks
// or ids (MultiplyArgs::known); rows of act: pairs, then the shared expert's, one a token.
struct ExpertsDownArgs {
  const float* act;
  const std::uint8_t *codes[2], *scales[2];  // the experts' stack, the shared expert's
  const Task* tasks;                         // or null: of one token, its ids
  const int *task_count, *ids;
  const float *weights, *shared;
  int m, k, experts, int8;
  float* y;
  // By can_experts_down(), of the matrix; each: stages of a piece.
  int tiles, n, stages, groups, group_shift, each;
};
bool can_experts_down(const Queue& q, const Matrix& w, ExpertsDownArgs& a);
void launch_experts_down(const Queue& q, const ExpertsDownArgs& a);

// ops/top_logits.h; scratch: top_logits_scratch() bytes.
inline constexpr int kTopLogitsRun = 2048, kTopLogitsKept = 64;
constexpr int top_logits_runs(std::int64_t n) {
  return static_cast<int>((n + kTopLogitsRun - 1) / kTopLogitsRun);
}
constexpr std::size_t top_logits_scratch(std::int64_t m, std::int64_t n) {
  return static_cast<std::size_t>(m * top_logits_runs(n)) *
         (kTopLogitsKept * sizeof(std::uint64_t) + sizeof(int));
}
void launch_top_logits(const Queue& q, const float* logits, int m, int n, void* scratch,
                       float* values, int* ids, int* bad);

// Fixtures of `nibble verify` (published.cu).
struct PublishedArgs {
  const std::uint8_t* codes;  // [n][k / 2]: columns 2 j (low nibble) and 2 j + 1
  const float* scales;        // [n][k / group]
  const float *residual, *delta;
  float* residual_out;  // the residual itself: in place
  float* y;
  int n, k, group;  // k a multiple of 64
  float eps;
};
void launch_published(const Queue& q, const PublishedArgs& a);
// Each block holds its place and `shared` bytes of shared memory for so many cycles.
void launch_occupy(const Queue& q, int blocks, std::size_t shared, int cycles);

}  // namespace nibble::NIBBLE_CUDA_NS
