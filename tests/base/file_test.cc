#include "base/file.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <bit>
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "base/half.h"

namespace nibble {
namespace {

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    char t[] = "/tmp/nibble-file-XXXXXX";
    dir_ = ::mkdtemp(t);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  std::filesystem::path dir_;
};

TEST_F(FileTest, WriteReadMap) {
  write_file(dir_ / "a", "hello");
  EXPECT_EQ(read_file(dir_ / "a"), "hello");
  const MappedFile m(dir_ / "a");
  EXPECT_EQ(m.bytes().size(), 5u);
  EXPECT_THROW(read_file(dir_ / "a", 4), Error);
  EXPECT_THROW(read_file(dir_ / "none"), Error);
  EXPECT_THROW(MappedFile{dir_}, Error);
}

TEST_F(FileTest, AbandonedWriteLeavesTheOldFile) {
  write_file(dir_ / "a", "old");
  {
    AtomicFile f(dir_ / "a");
    f.write("new", 3);
  }
  EXPECT_EQ(read_file(dir_ / "a"), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_), {}), 1);
}

TEST_F(FileTest, FullDiskIsAnErrorThatSaysSo) {
  try {
    AtomicFile f("/dev/full/x");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("/dev/full/x"), std::string::npos);
  }
}

TEST(Half, EveryHalfRoundTrips) {
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const auto h = static_cast<std::uint16_t>(i);
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const double size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                        : exponent == 0 ? std::ldexp(mantissa, -24)
                                        : std::ldexp(1024 + mantissa, exponent - 25);
    ASSERT_TRUE(half_to_float(h) == (h >> 15 ? -size : size) ||
                (std::isnan(half_to_float(h)) && std::isnan(size)));
    if (!std::isnan(half_to_float(h))) {
      ASSERT_EQ(float_to_half(half_to_float(h)), h);
    }
    if (!std::isnan(bf16_to_float(h))) {
      ASSERT_EQ(float_to_bf16(bf16_to_float(h)), h);
    }
  }
}

// Between each half and the next: the middle goes to the even one, and all else to the nearer.
TEST(Half, RoundsToNearestEven) {
  for (std::uint16_t h = 0; h < 0x7c00; ++h) {
    const float low = half_to_float(h);
    const float high = h == 0x7bff ? 65536 : half_to_float(static_cast<std::uint16_t>(h + 1));
    const float middle = low + (high - low) / 2;
    const auto next = static_cast<std::uint16_t>(h + 1);
    for (const std::uint16_t sign : {0x0000, 0x8000}) {
      const float s = sign ? -1.0f : 1.0f;
      ASSERT_EQ(float_to_half(s * middle), sign | (h % 2 ? next : h)) << h;
      ASSERT_EQ(float_to_half(s * std::nextafter(middle, 0.0f)), sign | h) << h;
      ASSERT_EQ(float_to_half(s * std::nextafter(middle, 1e9f)), sign | next) << h;
    }
  }
  EXPECT_EQ(float_to_half(INFINITY), 0x7c00);
  EXPECT_EQ(float_to_half(-3e38f), 0xfc00);
  EXPECT_EQ(float_to_half(1e-45f), 0);
  EXPECT_EQ(float_to_half(NAN) & 0x7e00, 0x7e00);
}

TEST(Half, RoundsToNearest) {
  rc::check("bf16 is nearest", [](float f) {
    if (!std::isfinite(f) || std::fabs(f) > 3e38f) return;
    const float r = bf16_to_float(float_to_bf16(f));
    RC_ASSERT(std::fabs(r - f) <= std::fabs(f) / 256.0f + 1e-40f);
  });
}

}  // namespace
}  // namespace nibble
