// The matrix unit's kernels on machines that lack it: the same source over an emulation of its
// instructions (CMakeLists.txt compiles it a second time).
#include <random>

#include "verify/quick_sweep.h"

namespace nibble::cpu {
void amx_wide_for_test(Kernels& k);
}

namespace nibble::verify {
namespace {

cpu::Kernels emulated() {
  cpu::Kernels k = cpu::kernels(cpu::Isa::Avx512Vnni);
  cpu::amx_wide_for_test(k);
  return k;
}

class Amx : public testing::Test {
 protected:
  void SetUp() override {
    if (!cpu::isa_supported(cpu::Isa::Avx512Vnni)) GTEST_SKIP() << "needs AVX-512 VNNI";
  }
};

// Up to 8 rows: those of 8 in the emulated unit.
TEST_F(Amx, SweepInEmulation) {
  const cpu::Kernels k = emulated();
  expect_quick_sweep(k);
}

TEST_F(Amx, ManyRowsHaveTheScalarBits) {
  const cpu::Kernels k = emulated();
  std::mt19937 rng(6);
  cpu::CpuBackend scalar(1, cpu::Isa::Scalar), amx(2, k, true);
  for (const WeightType t : {WeightType::Int4, WeightType::Int4Aff, WeightType::Int8})
    for (const int group : {32, 64, 128})
      for (const int pieces : {1, 8})
        for (const std::int64_t columns : {group * 9, group * 8, group})
          for (const std::int64_t m : {9, 16, 17, 31, 32, 33, 70, 150})
            for (const Activations a : {Activations::Int16, Activations::Int8}) {
              const std::int64_t n = 37;
              const RandomWeight source(t, n, columns, group, 5, true);
              std::vector<float> x(static_cast<std::size_t>(m * columns));
              std::normal_distribution<float> normal;
              for (float& v : x) v = normal(rng);
              std::vector<float> y[2];
              cpu::CpuBackend* const of[2] = {&scalar, &amx};
              for (int i = 0; i < 2; ++i) {
                const auto w = of[i]->pack(source, pieces);
                y[i].assign(static_cast<std::size_t>(m * n), NAN);
                const LinearOutput o{w.get(), nullptr, y[i].data(), n};
                of[i]->linear({x.data(), m, columns, a, {&o, 1}});
              }
              ASSERT_TRUE(same_bits(y[0], y[1]))
                  << weight_type_name(t) << " group " << group << " pieces " << pieces << " K "
                  << columns << " M " << m << " " << activations_name(a);
            }
}

}  // namespace
}  // namespace nibble::verify
