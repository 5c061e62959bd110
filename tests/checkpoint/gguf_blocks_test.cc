#include "checkpoint/gguf_blocks.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>

#include "base/file.h"
#include "builders.h"

namespace nibble {
namespace {

// tests/data/checkpoint/gguf_blocks.bin: per type, its number, a count of blocks (both 32 bits),
// random blocks with finite scales, and the fp32 values that gguf.quants.dequantize of the Python
// package gguf 0.19 makes of them.
struct Vector {
  const BlockType* type;
  std::int64_t blocks;
  std::string data;
  std::vector<float> values;
};
std::vector<Vector> vectors() {
  const std::string file = read_file(NIBBLE_TEST_DATA "/checkpoint/gguf_blocks.bin");
  std::vector<Vector> list;
  for (std::size_t at = 0; at < file.size();) {
    std::uint32_t head[2];
    std::memcpy(head, &file[at], 8);
    Vector v{find_block_type(head[0]), head[1], {}, {}};
    if (v.type == nullptr) throw Error("unknown type in the test data");
    const auto bytes = static_cast<std::size_t>(v.blocks * v.type->bytes);
    v.data = file.substr(at + 8, bytes);
    v.values.resize(static_cast<std::size_t>(v.blocks * v.type->values));
    std::memcpy(v.values.data(), &file[at + 8 + bytes], v.values.size() * 4);
    at += 8 + bytes + v.values.size() * 4;
    list.push_back(std::move(v));
  }
  return list;
}

TEST(GgufBlocks, DecodeToTheBitAsTheReferenceDoes) {
  const auto all = vectors();
  ASSERT_EQ(all.size(), 10u);  // every supported type but F32
  for (const auto& v : all) {
    std::vector<float> got(v.values.size());
    decode_blocks(*v.type, test::bytes_of(v.data).data(), v.blocks, got.data());
    for (std::size_t i = 0; i < got.size(); ++i)
      ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(v.values[i]))
          << v.type->name << " value " << i << ": " << got[i] << " != " << v.values[i];
  }
}

TEST(GgufBlocks, NamesEveryTypeForErrors) {
  EXPECT_EQ(block_type_name(12), "Q4_K");
  EXPECT_EQ(block_type_name(39), "MXFP4");
  EXPECT_EQ(block_type_name(99), "number 99");
  EXPECT_EQ(find_block_type(39), nullptr);
}

// Nearest codes: no value is further from its code's than half a step (and the rounding of it).
RC_GTEST_PROP(RequantiseInt8, ErrorIsHalfAStep, ()) {
  const float magnitude = std::ldexp(1.0f, *rc::gen::inRange(-30, 23));
  std::vector<float> x(64);
  for (auto& v : x) v = magnitude * static_cast<float>(*rc::gen::inRange(-1000, 1001)) / 1000;
  std::vector<std::uint8_t> codes(64);
  std::vector<float> scales(2);
  requantise_int8(x.data(), 64, codes.data(), scales.data());
  for (std::size_t i = 0; i < 64; ++i) {
    const float scale = scales[i / 32];
    RC_ASSERT(half_to_float(float_to_half(scale)) == scale);
    const float value = static_cast<float>(static_cast<std::int8_t>(codes[i])) * scale;
    RC_ASSERT(std::fabs(value - x[i]) <= scale * 0.5625f);
  }
}

TEST(RequantiseInt8, TinyGroupsKeepTheirLargestValue) {
  // largest / 127 lies where fp16 has one significant bit: rounded down, its code would be 178.
  std::vector<float> x(32, 0.0f);
  x[3] = -127 * 1.4f * 0x1p-24f;
  std::vector<std::uint8_t> codes(32);
  float scale = 0;
  requantise_int8(x.data(), 32, codes.data(), &scale);
  EXPECT_EQ(scale, 0x1p-23f);
  EXPECT_NEAR(static_cast<std::int8_t>(codes[3]) * scale, x[3], 0x1p-24f);
}

TEST(RequantiseInt8, ZerosStayZeroAndOverflowShows) {
  std::vector<float> x(64, 0.0f);
  x[40] = 1e9f;
  std::vector<std::uint8_t> codes(64, 1);
  std::vector<float> scales(2);
  requantise_int8(x.data(), 64, codes.data(), scales.data());
  EXPECT_EQ(scales[0], 0);
  EXPECT_EQ(codes[0], 0);
  EXPECT_TRUE(std::isinf(scales[1]));
}

}  // namespace
}  // namespace nibble
