// Rows of fp32 weights -> sym_int4 codes and fp16 scales, and their packing (docs/formats.md).
#pragma once
#include <cstdint>
#include <string_view>

namespace nibble::int4 {

// How a group's scale is chosen.
//   Rtn     the sym_int4 rule of format.h: the element of largest magnitude gets code 0.
//   Search  the scale that minimises sum w_i (x_i - scale * q_i)^2 with w_i = sigma + |x_i|, sigma
//   the
//           group's root mean square: large weights matter more, none is ignored. Both signs are
//           tried over a fixed grid, then refitted in closed form; the error is that of the scale
//           as stored, in fp16, and is never above Rtn's. Weights that lie on Rtn's grid come back
//           exact.
enum class Method : std::uint8_t { Rtn, Search };

// x: [rows, k] finite values; k a multiple of `group`, which is 32, 64 or 128. Writes codes
// [rows, k], one a byte, and scales [rows, k / group], fp16 bits. Buffers do not overlap. The
// result depends on each group's values alone. Error naming `tensor` when a value is too large for
// an fp16 scale; `first_row` is the number of row 0 in that message.
void quantise_rows(Method method, const float* x, std::int64_t rows, std::int64_t k, int group,
                   std::uint8_t* codes, std::uint16_t* scales, std::string_view tensor,
                   std::int64_t first_row = 0);

// codes: [count], count a multiple of 8 -> words [count / 8], as pack8.
void pack(const std::uint8_t* codes, std::int64_t count, std::uint32_t* words);

}  // namespace nibble::int4
