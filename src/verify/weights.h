// Weights and inputs of the harness, each a function of a seed.
#pragma once
#include <cstdint>
#include <vector>

#include "int4/weight.h"

namespace nibble::verify {

// Independent N(0, scale^2) values, of the stream (seed, row): n of them. Each is one of 2^16
// quantiles, so at most 4.3 sigma.
void normal_row(std::uint64_t seed, std::int64_t row, float scale, std::int64_t n, float* out);
std::vector<float> normal_floats(std::size_t n, std::uint64_t seed, float scale = 1);

// Codes and scales drawn at random (negative scales too), no real weights behind them: reaches
// every code in every place.
class RandomWeight final : public WeightSource {
 public:
  RandomWeight(WeightType type, std::int64_t n, std::int64_t k, int group, unsigned seed,
               bool scales_f16 = true);
  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override;

 private:
  WeightRows rows_;
};

// N(0, 0.02^2) weights, quantised a run of rows at a time when read: nothing is held, so that a
// matrix of any size can be packed. Int4 by int4::quantise_rows (Rtn), Int4Aff from the group's
// minimum and maximum, Int8 from its largest magnitude, plain types by rounding.
class NormalWeight final : public WeightSource {
 public:
  // first: the row of the whole matrix that is row 0 of this one.
  NormalWeight(WeightType type, std::int64_t n, std::int64_t k, int group, std::uint64_t seed,
               std::int64_t first = 0);
  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override;
  // The same rows before they were quantised, [count, K].
  void unquantised(std::int64_t row, std::int64_t count, float* out) const;

 private:
  std::uint64_t seed_;
  std::int64_t first_;
};

}  // namespace nibble::verify
