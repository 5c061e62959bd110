// The shapes `nibble verify` runs.
#pragma once
#include <vector>

#include "verify/harness.h"

namespace nibble::verify {

// Every linear of Qwen3.6 27B and 35B-A3B at tensor parallelism 1, 2, 4 and 8; the shapes that the
// published kernels were tested with or fail on; prime N; every K up to 2048 that is a multiple of
// the group; every weight type. Largest first comes last, quick_cases() first.
std::vector<Case> full_cases();

// Small shapes that reach every kernel (instruction set, weight type, activation mode, row block),
// every tail of N and K, every group, with and without pieces.
std::vector<Case> quick_cases();

// One shape in INT4, in the largest group that divides K. Throws UsageError when none does.
Case int4_case(std::int64_t n, std::int64_t k, int pieces = 1);

}  // namespace nibble::verify
