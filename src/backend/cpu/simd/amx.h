// The matrix unit's instructions. A tile is up to 16 rows of up to 64 bytes. Each orders itself
// with the loads and stores around it, which the compiler's own intrinsics do not in GCC 12.
#pragma once
#include <cstdint>

namespace nibble::cpu {
namespace {

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

inline void tiles_begin(const TileConfig& c) { asm volatile("ldtilecfg %0" ::"m"(c)); }
inline void tiles_end() { asm volatile("tilerelease"); }
template <int T>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void tile_load(const void* p, std::int64_t pitch) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(pitch), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* p, std::int64_t pitch) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(pitch), "i"(T) : "memory");
}
// C[m][n] += sum over v, i of A[m][4 v + i] B[v][4 n + i], signed bytes.
template <int C, int A, int B>
inline void tile_dot() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

}  // namespace
}  // namespace nibble::cpu
