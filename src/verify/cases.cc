#include "verify/cases.h"

#include <algorithm>
#include <tuple>

#include "base/error.h"

namespace nibble::verify {
namespace {

using Shape = std::pair<std::int64_t, std::int64_t>;  // N, K

// Per rank at tensor parallelism 1, 2, 4, 8, in that order: rows of W are split, ...
constexpr Shape kColumnParallel[][4] = {
    // 27B: attention q, k, v and gate; gated delta net q, k, v, z and b, a; gate and up; head
    {{14336, 5120}, {7168, 5120}, {3584, 5120}, {2048, 5120}},
    {{16384, 5120}, {8192, 5120}, {4096, 5120}, {2048, 5120}},
    {{96, 5120}, {48, 5120}, {24, 5120}, {12, 5120}},
    {{34816, 5120}, {17408, 5120}, {8704, 5120}, {4352, 5120}},
    {{248320, 5120}, {124160, 5120}, {62080, 5120}, {31040, 5120}},
    // 35B-A3B: the same, then router, an expert's gate and up, the shared expert's gate, head
    {{9216, 2048}, {4608, 2048}, {2560, 2048}, {1536, 2048}},
    {{12288, 2048}, {6144, 2048}, {3072, 2048}, {1536, 2048}},
    {{64, 2048}, {32, 2048}, {16, 2048}, {8, 2048}},
    {{256, 2048}, {256, 2048}, {256, 2048}, {256, 2048}},
    {{1024, 2048}, {512, 2048}, {256, 2048}, {128, 2048}},
    {{1, 2048}, {1, 2048}, {1, 2048}, {1, 2048}},
    {{248320, 2048}, {124160, 2048}, {62080, 2048}, {31040, 2048}}};
// ... or columns: a rank holds 8 / TP of the eight pieces.
constexpr Shape kRowParallel[][4] = {
    {{5120, 6144}, {5120, 3072}, {5120, 1536}, {5120, 768}},    // 27B: attention and delta net out
    {{5120, 17408}, {5120, 8704}, {5120, 4352}, {5120, 2176}},  // down
    {{2048, 4096}, {2048, 2048}, {2048, 1024}, {2048, 512}},    // 35B-A3B: the same
    {{2048, 512}, {2048, 256}, {2048, 128}, {2048, 64}}};
constexpr Shape kExtra[] = {{16, 128},    {32, 256},   {128, 2048},  {256, 2048},  {512, 2048},
                            {513, 2048},  {512, 5120}, {8704, 5120}, {5120, 4352}, {1024, 1280},
                            {1024, 256},  {24, 5120},  {1, 128},     {31, 128},    {127, 2048},
                            {1009, 5120}, {251, 4352}, {8707, 5120}};

constexpr WeightType kQuantised[] = {WeightType::Int4, WeightType::Int4Aff, WeightType::Int8};
constexpr WeightType kPlain[] = {WeightType::F16, WeightType::BF16, WeightType::F32};

// Every type and group that K allows.
void add_types(std::vector<Case>& v, std::int64_t n, std::int64_t k, int pieces) {
  for (const WeightType t : kQuantised)
    for (const int g : {32, 64, 128})
      if (k % g == 0) v.push_back({n, k, t, g, pieces});
  for (const WeightType t : kPlain) v.push_back({n, k, t, 0, pieces});
}

// Drops what was there before, and sorts by size.
std::vector<Case> tidy(std::vector<Case> v) {
  const auto key = [](const Case& c) {
    return std::tuple(c.n * c.k, c.n, c.type, c.group, c.pieces);
  };
  std::stable_sort(v.begin(), v.end(),
                   [&](const Case& a, const Case& b) { return key(a) < key(b); });
  v.erase(std::unique(v.begin(), v.end(),
                      [&](const Case& a, const Case& b) { return key(a) == key(b); }),
          v.end());
  return v;
}

}  // namespace

Case int4_case(std::int64_t n, std::int64_t k, int pieces) {
  const int group = k % 128 == 0 ? 128 : k % 64 == 0 ? 64 : 32;
  if (n < 1 || k < 1 || k % group != 0)
    fail_usage("shape {}x{}: expected N > 0 and K a positive multiple of 32", n, k);
  return {n, k, WeightType::Int4, group, pieces};
}

std::vector<Case> quick_cases() {
  std::vector<Case> v;
  for (const int pieces : {1, 8}) {
    add_types(v, 67, 1152, pieces);
    add_types(v, 5, 640, pieces);
    for (std::int64_t n = 1; n <= 33; n += pieces == 1 ? 1 : 8)  // every tail of a tile
      for (const WeightType t : kQuantised) v.push_back({n, 96, t, 32, pieces});
    for (std::int64_t k = 1; k <= 70; k += 3)
      for (const WeightType t : kPlain) v.push_back({5, k, t, 0, pieces});
    for (const WeightType t : kQuantised)
      for (const int g : {32, 64, 128})
        for (std::int64_t k = g; k <= 6 * g; k += g) v.push_back({17, k, t, g, pieces});
  }
  for (const auto& [n, k] :
       {Shape{1, 128}, {16, 128}, {32, 256}, {24, 5120}, {256, 2048}, {513, 2048}})
    v.push_back(int4_case(n, k));
  return tidy(v);
}

std::vector<Case> full_cases() {
  std::vector<Case> v = quick_cases();
  const auto add = [&](const Shape& s, int pieces) {
    v.push_back(int4_case(s.first, s.second, pieces));
    // Every type on the small ones, and on the two shapes of the published failures.
    constexpr std::int64_t kAllTypes = std::int64_t{1} << 21;
    if (s.first * s.second <= kAllTypes || s == Shape{8704, 5120} || s == Shape{5120, 4352})
      add_types(v, s.first, s.second, pieces);
  };
  for (const auto& linear : kColumnParallel)
    for (const Shape& s : linear) add(s, 1);
  for (const auto& linear : kRowParallel)
    for (int i = 0; i < 4; ++i) add(linear[i], kRowParallelPieces >> i);
  for (const Shape& s : kExtra) add(s, 1);
  for (const int g : {32, 64, 128})
    for (std::int64_t k = g; k <= 2048; k += g)
      for (const WeightType t : kQuantised) v.push_back({37, k, t, g, 1});
  for (std::int64_t k = 32; k <= 2048; k += 96)
    for (const WeightType t : kPlain) v.push_back({37, k + 1, t, 0, 1});
  return tidy(v);
}

}  // namespace nibble::verify
