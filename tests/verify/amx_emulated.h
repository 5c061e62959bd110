// The matrix unit's instructions (backend/cpu/simd/amx.h) in plain code, after Intel's pseudocode.
#pragma once
#include <cstdint>
#include <cstring>

namespace nibble::cpu {
namespace {

struct TileConfig {
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
thread_local TileConfig configured;
thread_local std::uint8_t tiles[8][16][64];

inline void tiles_begin(const TileConfig& c) {
  configured = c;
  std::memset(tiles, 0, sizeof tiles);
}
inline void tiles_end() { configured = {}; }
template <int T>
void tile_zero() {
  std::memset(tiles[T], 0, sizeof tiles[T]);
}
template <int T>
void tile_load(const void* p, std::int64_t pitch) {
  tile_zero<T>();
  for (int r = 0; r < configured.rows[T]; ++r)
    std::memcpy(tiles[T][r], static_cast<const char*>(p) + r * pitch, configured.row_bytes[T]);
}
template <int T>
void tile_store(void* p, std::int64_t pitch) {
  for (int r = 0; r < configured.rows[T]; ++r)
    std::memcpy(static_cast<char*>(p) + r * pitch, tiles[T][r], configured.row_bytes[T]);
}
template <int C, int A, int B>
void tile_dot() {
  for (int m = 0; m < configured.rows[C]; ++m)
    for (int n = 0; n < configured.row_bytes[C] / 4; ++n) {
      std::int32_t sum;
      std::memcpy(&sum, tiles[C][m] + 4 * n, 4);
      for (int j = 0; j < configured.row_bytes[A]; ++j)
        sum += static_cast<std::int8_t>(tiles[A][m][j]) *
               static_cast<std::int8_t>(tiles[B][j / 4][4 * n + j % 4]);
      std::memcpy(tiles[C][m] + 4 * n, &sum, 4);
    }
}

}  // namespace
}  // namespace nibble::cpu
