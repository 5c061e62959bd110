// AVX-VNNI's kernels on machines that lack it: the same source with AVX-512's encoding of the same
// instructions (CMakeLists.txt compiles it a second time).
#include <gtest/gtest.h>

#include "verify/cases.h"

namespace nibble::cpu {
void avxvnni_dots_for_test(Kernels& k);
}

namespace nibble::verify {
namespace {

TEST(AvxVnni, SweepThroughAvx512sEncoding) {
  if (!cpu::isa_supported(cpu::Isa::Avx512Vnni)) GTEST_SKIP() << "needs AVX-512 VNNI";
  cpu::Kernels k = cpu::kernels(cpu::Isa::Avx2);
  cpu::avxvnni_dots_for_test(k);
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

}  // namespace
}  // namespace nibble::verify
