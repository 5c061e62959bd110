// The published defect, kept alive: what the published fused kernel (residual add + RMSNorm + INT4
// GEMV, residual updated in place) computes under a given order of its work-groups, and what its
// published repair does. A simulation of reads and writes, deterministic; no threads.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "verify/weights.h"

namespace nibble::verify {

// One row of input and an INT4 matrix. Residual and delta are N(0, 1) alike, norm weights 1: what a
// unit test draws. A late work-group then computes from residual + 2 delta instead of residual +
// delta, which moves its rows of y by 0.32 of their size whatever the weights.
struct Problem {
  std::int64_t n, k;
  std::vector<float> residual, delta;  // [K]
  NormalWeight weight;
  Problem(std::int64_t n, std::int64_t k);
};

inline constexpr int kGroupRows = 16;  // rows of W a work-group computes

// The share of work-groups that start after work-group 0 has written the residual. Nothing bounds
// it: not the size of the grid, nor what else runs on the device. The published error of 0.28 is
// that of two thirds: sqrt(0.10^2 + 2/3 * 0.32^2).
inline constexpr double kPublishedLate = 2.0 / 3;

// What the work-groups of a launch multiplied the weights with.
struct Launch {
  std::vector<std::vector<float>> inputs;  // distinct normed inputs, [K] each
  std::vector<int> seen;                   // per work-group, which of them
  std::int64_t columns;                    // contracted; y is 0 where there are none
};

// In place: every work-group reads residual and delta and computes the norm; work-group 0 writes
// the sum back into the residual. Those not late read before that.
Launch launch_in_place(const Problem& p, double late);
// The published repair: N <= 512 as above; else a prepass, and a GEMV over floor(K / 512) * 512
// columns.
Launch launch_split_above_512(const Problem& p, double late);

// Relative RMS error of each launch's y against the double reference on weights that were not
// quantised. One pass over the weights. y_given, when not null, is one more y [N].
std::vector<double> launch_errors(const Problem& p, std::span<const Launch> launches,
                                  const float* y_given = nullptr);

// The page `nibble verify --explain` prints.
struct Story {
  struct Line {
    std::int64_t n, k;
    double in_order;  // the in-place form when every work-group reads in time: the noise of INT4
    double in_place, split;  // under the order of kPublishedLate
    double nibble;           // Nibble's operation, one thread first and the others late
    bool nibble_bits;        // and whether its bits are those of an undisturbed run
  };
  std::vector<Line> lines;
  std::vector<std::pair<double, double>> curve;  // share late, error in place at lines[0]
};
Story tell_story();

}  // namespace nibble::verify
