// The adversaries of `nibble verify --device cuda`, on the emulator, whose order of blocks is
// known: the published form fails as it must, and chains of calls have the CPU's bits.
#include <gtest/gtest.h>

#include "cuda/emulated.h"
#include "verify/cases.h"
#include "verify/published.h"
#include "verify/stress.h"

namespace nibble {
namespace {

// schedule 0: block 0 first; 1: last.
TEST(Published, InPlaceIsRightWhereNobodyIsLateOnly) {
  if (emulated_backends().empty()) GTEST_SKIP() << "no emulator in this build";
  const verify::Problem p(40, 128);  // three blocks, the last of half a tile
  const auto corrupt = [&](bool in_place, int schedule) {
    return emulated_published(p.weight, p.residual, p.delta, 3, in_place, schedule);
  };
  EXPECT_EQ(corrupt(true, 0), 3);
  EXPECT_EQ(corrupt(true, 1), 0);
  for (int schedule = 0; schedule < 4; ++schedule) EXPECT_EQ(corrupt(false, schedule), 0);
}

TEST(Stress, ChainsOnADeviceHaveTheCpusBits) {
  const auto schedules = emulated_backends();
  if (schedules.empty()) GTEST_SKIP() << "no emulator in this build";
  for (const Activations a : {Activations::Int16, Activations::Int8, Activations::Fp32}) {
    const verify::StressResult r =
        verify::stress(verify::int4_case(67, 640), a, schedules, 160, [](double) {});
    EXPECT_EQ(r.calls, 160);
    EXPECT_EQ(r.differing, 0) << r.first;
  }
  // A row-parallel matrix in the chain, of eight rows by pieces.
  const verify::StressResult r = verify::stress(verify::int4_case(512, 256), Activations::Int16,
                                                schedules, 128, [](double) {});
  EXPECT_EQ(r.calls, 128);
  EXPECT_EQ(r.differing, 0) << r.first;
}

}  // namespace
}  // namespace nibble
