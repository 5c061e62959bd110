// One run of the fused operation, or of its prepass + GEMV twin, and the comparison of its bits.
#pragma once
#include <string>
#include <vector>

#include "backend/backend.h"
#include "verify/weights.h"

namespace nibble::verify {

inline constexpr int kRows = 8;  // rows of input a case has
inline constexpr float kEps = 1e-6f;

// kRows rows of N(0, 1) residual and delta; one row is scaled up to 1e5 and one down to 1e-3, which
// the norm takes out again. Norm weight N(1, 0.2^2), given less 1 with unit_offset.
struct Inputs {
  std::int64_t k;
  bool unit_offset;
  std::vector<float> residual, delta;  // [kRows, K]
  std::vector<float> weight;           // [K]
  Inputs(std::int64_t k, bool unit_offset, std::uint64_t seed);
};

// Outputs of kRows rows.
struct Outputs {
  std::vector<float> y;     // [kRows, N]
  std::vector<float> h, u;  // [kRows, K] residual_out and normed
};

struct Run {
  std::string what;  // for a failure's text
  Backend* backend = nullptr;
  const Weight* w = nullptr;
  const Inputs* in = nullptr;
  Activations activations = Activations::Int16;
  std::vector<int> rows;  // which rows of `in`, in this order
  Plan plan = Plan::Auto;
  bool twin = false;       // residual-add + RMSNorm on its own, then linear
  std::int64_t first = 0;  // row of the whole matrix that is row 0 of w
};

// Runs all rows. Throws Error when an input was written or an output's padding.
Outputs execute(const Run& r);
// The first element whose bits are not those of `want`, whose y has `n` columns; empty: none.
std::string compare(const Run& r, const Outputs& want, std::int64_t n);

}  // namespace nibble::verify
