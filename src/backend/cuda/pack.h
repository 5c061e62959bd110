// Repacking on the device: rows as the host sends them -> the tiles that kernels stream
// (kernels.h, Matrix).
#pragma once
#include "backend/cuda/kernels.h"

namespace nibble::NIBBLE_CUDA_NS {

// Sixteen rows a tile, of which a matrix's last may have fewer; each row_bytes (a multiple of 16):
//   int4   16 bytes for 32 columns: byte j holds columns j (low nibble) and 16 + j (high)
//   int8   a byte a column
//   plain  values as they are kept, zeros up to row_bytes
// The rows' scales [rows][groups] follow, then as many offsets (int4-affine), as they are kept.
struct PackArgs {
  Matrix w;
  std::uint8_t *codes = nullptr, *scales = nullptr;  // w's, which are written
  const std::uint8_t* rows = nullptr;
  std::int64_t row_bytes = 0;
  std::int64_t first = 0;  // tile, of all of the stack
  int tiles = 0;           // from there on
};
void launch_pack(const Queue& q, const PackArgs& a);

}  // namespace nibble::NIBBLE_CUDA_NS
