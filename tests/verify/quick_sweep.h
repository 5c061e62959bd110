// The quick sweep of a table of kernels that no machine at hand chooses by itself.
#pragma once
#include <gtest/gtest.h>

#include "verify/cases.h"

namespace nibble::verify {

// Codes times integers, against every instruction set of this machine.
inline void expect_quick_sweep(const cpu::Kernels& k) {
  Harness h(k);
  int rows = 0;
  for (const Case& c : quick_cases()) {
    if (!is_quantised(c.type)) continue;
    for (const Row& r : h.check(c, {Activations::Int16, Activations::Int8})) {
      ASSERT_EQ(r.failure, "") << c.n << "x" << c.k << " " << weight_type_name(c.type);
      ++rows;
    }
  }
  EXPECT_GT(rows, 300);
}

}  // namespace nibble::verify
