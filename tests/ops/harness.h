// What the tests of operations take from the harness (src/verify).
#pragma once
#include <gtest/gtest.h>

#include "verify/harness.h"

namespace nibble::harness {

using verify::backends;
using verify::bound;
using verify::Guarded;
using verify::RandomWeight;
using verify::same_bits;

inline std::vector<float> random_floats(std::size_t n, unsigned seed, float scale = 1) {
  return verify::normal_floats(n, seed, scale);
}

}  // namespace nibble::harness
