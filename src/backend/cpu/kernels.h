// The CPU kernels behind one table an instruction set. Everything here is plain data: kernel files
// are compiled with their own -m flags and must not instantiate shared inline functions.
#pragma once
#include <cstdint>

#include "int4/weight.h"
#include "ops/activations.h"
#include "ops/attention.h"
#include "ops/pieces.h"

namespace nibble::cpu {

inline constexpr int kTile = 16;    // rows of W side by side in one vector
inline constexpr int kMaxRows = 8;  // rows of x a tile kernel takes at once

// Eight rows of x in fixed point lie interleaved, so that a kernel needs one pointer and not
// eight: 32-bit word w of row m is word 8 w + m. Fewer rows lie one after the other.
template <int Rows>
inline constexpr int kWordStride = Rows == kMaxRows ? kMaxRows : 1;

// One input row, prepared once: in fp32, or in fixed point, padded with zeros to whole chunks.
// Fixed point is there twice, because one row of x wants bytes and several want 16 bits: as two
// signed-byte limbs (q = 256 hi + lo; int8 has lo only), and as q itself, whose eight columns
// 0..7 lie in the order 0 2 4 6 1 3 5 7: a code vector shifted by 0, 4, 8 and 12 bits and cut to
// 4 bits in its 16-bit lanes holds columns (0 2), (4 6), (1 3) and (5 7) of a row in 32 bits.
struct XRow {
  float* f = nullptr;              // [padded K]
  std::int8_t* lo = nullptr;       // [padded K]
  std::int8_t* hi = nullptr;       // [padded K]
  std::int16_t* q = nullptr;       // [padded K], in pairs
  std::int32_t* minus8 = nullptr;  // [chunks] -8 times the sum of q over a chunk
  float* scale = nullptr;          // [blocks]
  float* sum = nullptr;            // [chunks] sum of the chunk's x, as rounded
};

// A packed matrix: tiles of 16 rows; in a tile, chunks of 32 columns; a chunk holds
//   int4   4 x 64 bytes: vector v, byte 4r + c = columns 8v + c (low nibble), 8v + 4 + c (high),
//   row r int8   8 x 64 bytes: vector v, byte 4r + c = column 4v + c, row r plain  32 x 16 values:
//   column, then row
// and scales (offsets) are [tile][group][16], fp16 or fp32.
struct TileWeight {
  WeightType type = WeightType::Int4;
  bool scales_f16 = true;
  const std::uint8_t* codes = nullptr;
  const std::uint8_t* scales = nullptr;
  const std::uint8_t* offsets = nullptr;
  std::int64_t tile_bytes = 0;  // codes of a tile
  std::int64_t groups = 0;
  const Unit* units = nullptr;
  std::int32_t unit_count = 0;
  int pieces = 1;
};

// out[m][16] = rows of tile `tile` times x[m], m < rows. Brings what follows into the cache, up to
// the tile before `ahead`, that this thread streams next (nothing if ahead <= tile).
using TileFn = void (*)(const TileWeight& w, std::int64_t tile, std::int64_t ahead, const XRow* x,
                        float* out);

// Sixteen rows of x in fixed point, by blocks of 64 columns: a limb's bytes of a block lie row
// after row. A block of 32 columns leaves the rest of its 64 unused.
inline constexpr int kPanelRows = 16;
struct Panel {
  std::int8_t* bytes = nullptr;  // [blocks][limbs][16][64]; int16: lo, then hi
  float* scale = nullptr;        // [blocks][16]
  float* sum = nullptr;          // [chunks][16], as XRow's
};

// TileFn for up to kWideRows rows, in panels; 32 bytes behind a panel's last block may be read.
inline constexpr int kWideRows = 256;
using WideFn = void (*)(const TileWeight& w, std::int64_t tile, std::int64_t ahead, const Panel* x,
                        int rows, float* out);

// The same before pieces are added: row m's at out[m] [pieces][16].
using PiecesFn = void (*)(const TileWeight& w, std::int64_t tile, const XRow* x, float* const* out);

struct AttentionTask {
  std::int64_t heads;                  // query heads of one row that share the key-value head
  const float* q;                      // [heads, head_dim]
  const void* keys;                    // [positions / 16][head_dim][16]
  const void* values;                  // [positions][head_stride]
  std::int64_t head_dim, head_stride;  // head_stride: head_dim rounded up to 16
  std::int64_t begin, end;             // positions of this split; begin % 512 == 0
  float scale;
  bool fixed;                 // int16 keys and values, with the scales below; else fp32
  const float* key_scales;    // [positions]
  const float* value_scales;  // [positions]
  // [heads, out_pitch]: largest score, sum of exp, then [head_stride] the weighted sum of values.
  float* out;
  std::int64_t out_pitch;
};

// 16 channels (fewer: the rest is neither read nor written) of one sequence's rows.
struct ConvTask {
  const float* u;  // [rows, pitch]
  std::int64_t rows, pitch, channels;
  const float* weight;  // [taps, pitch]
  std::int64_t taps;
  float* state;  // [taps - 1, pitch]
  float* y;      // [rows, pitch]
};

// 16 columns (fewer: as above) of one head over one sequence's rows.
struct DeltaTask {
  const float *q, *k;  // [rows, key_dim], normalised
  const float* v;      // [rows, v_pitch]
  std::int64_t rows, key_dim, v_pitch, columns;
  const float *alpha, *beta, *kq;  // [rows]; kq = k . q
  float* state;                    // [key_dim][16]
  float* out;                      // [rows, out_pitch]
  std::int64_t out_pitch;
};

struct Kernels {
  const char* name;
  TileFn tile[6][3][4];  // [WeightType][Activations][rows: 1, 2, 4, 8]
  WideFn wide[3][2];     // [quantised WeightType][int16, int8]; null: none

  // Rounds row x [k] as `plan` blocks it; `fixed`: integers, their words `stride` apart; `plain`:
  // fp32 copy.
  void (*prepare)(const float* x, std::int64_t k, const std::int32_t* block_chunk,
                  std::int32_t blocks, Activations a, bool fixed, bool plain, int stride,
                  const XRow& out);
  // u = (residual + delta) * rsqrt(mean + eps) * (offset + weight); delta may be null. u: [k].
  void (*add_rmsnorm)(const float* residual, const float* delta, const float* weight, float offset,
                      float eps, std::int64_t k, float* u);
  void (*add)(const float* a, const float* b, std::int64_t n, float* out);  // b may be null
  void (*swiglu)(const float* gate, const float* up, float* out);  // one tile row: 16 values
  // RMSNorm (norm may be null, else times offset + norm) and RoPE of one head: x [head_dim] -> y.
  void (*rope)(const float* x, std::int64_t head_dim, const float* norm, float offset, float eps,
               const float* cos_sin, std::int64_t rotary, float* y);
  void (*attention)(const AttentionTask& t);
  // parts: `splits` results of attention(), pitch floats apart -> out [head_dim], times
  // sigmoid(gate) unless that is null.
  void (*combine)(const float* parts, std::int64_t splits, std::int64_t pitch,
                  std::int64_t head_dim, const float* gate, float* out);
  // out = x / scale rounded, scale = largest magnitude / 32512. n a multiple of 16.
  void (*to_int16)(const float* x, std::int64_t n, std::int16_t* out, float* scale);
  void (*to_half)(const float* x, std::int64_t n, std::uint16_t* out);  // n a multiple of 16

  // Gated delta net (ops/delta_net.h, ops/gated_rmsnorm_linear.h).
  void (*conv)(const ConvTask& t);
  // One row's q and k, [key_dim] each -> qn, kn; returns kn . qn.
  float (*unit_qk)(const float* q, const float* k, std::int64_t key_dim, float eps, float* qn,
                   float* kn);
  // alpha and beta of n rows of one head; a and b lie `pitch` floats apart.
  void (*delta_gates)(const float* a, const float* b, std::int64_t n, std::int64_t pitch,
                      float a_log, float dt_bias, float* alpha, float* beta);
  void (*delta_rule)(const DeltaTask& t);
  // One head: u = o * rsqrt(mean(o^2) + eps) * weight * silu(z).
  void (*gated_rmsnorm)(const float* o, const float* z, const float* weight, float eps,
                        std::int64_t dim, float* u);

  // Mixture of experts (ops/router.h, ops/experts.h). pieces: x in words one after the other.
  PiecesFn pieces[6][3][3];  // [WeightType][Activations][rows: 1, 2, 4]
  // parts [slots][pieces][16] -> 16 outputs: weighted sums in the order of slots, then the tree.
  void (*mix)(const float* parts, const float* weights, std::int64_t slots, int pieces, float* out);
  float (*sigmoid)(float x);
  void (*top_k)(const float* logits, std::int64_t experts, std::int64_t k, std::int32_t* ids,
                float* weights);
};

// In the order of preference, the last first.
enum class Isa : std::uint8_t { Scalar, Avx2, AvxVnni, Avx512, Avx512Vnni, AmxInt8 };
inline constexpr int kIsaCount = 6;

bool first_cache_streams();       // whether weights asked for early had best go there
bool isa_supported(Isa isa);      // by this CPU
const Kernels& kernels(Isa isa);  // throws Error when not supported
Isa best_isa();
const char* isa_name(Isa isa);  // "scalar", "avx2", "avx-vnni", "avx512", "avx512-vnni", "amx-int8"

const Kernels& scalar_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
// Put their dot products in the table of the same lanes: AVX2's, AVX-512's.
void avxvnni_dots(Kernels& k);
void avx512vnni_dots(Kernels& k);
void amx_wide(Kernels& k);  // beside those of AVX-512 VNNI

}  // namespace nibble::cpu
