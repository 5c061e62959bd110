// AVX-VNNI's kernels on machines that lack it: the same source with AVX-512's encoding of the same
// instructions (CMakeLists.txt compiles it a second time).
#include "verify/quick_sweep.h"

namespace nibble::cpu {
void avxvnni_dots_for_test(Kernels& k);
}

namespace nibble::verify {
namespace {

TEST(AvxVnni, SweepThroughAvx512sEncoding) {
  if (!cpu::isa_supported(cpu::Isa::Avx512Vnni)) GTEST_SKIP() << "needs AVX-512 VNNI";
  cpu::Kernels k = cpu::kernels(cpu::Isa::Avx2);
  cpu::avxvnni_dots_for_test(k);
  expect_quick_sweep(k);
}

}  // namespace
}  // namespace nibble::verify
