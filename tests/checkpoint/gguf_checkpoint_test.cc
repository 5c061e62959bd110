#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "checkpoint/gguf_blocks.h"
#include "gguf_sample.h"

namespace nibble {
namespace {

using test::bytes_of;
using test::error_of;
using test::GgufFile;
using test::model;
using test::open_model;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string block_bytes(std::size_t bytes, std::uint32_t seed) {
  std::string s;
  for (std::size_t i = 0; i < bytes; ++i) {
    seed = seed * 1664525 + 1013904223;
    s += static_cast<char>(seed >> 24);
  }
  return s;
}

// The exact types, as the source hands them on: rows of random blocks against decode_blocks, which
// the reference vectors check.
TEST(GgufWeights, ExactTypesKeepTheirValuesAndForm) {
  const std::tuple<std::uint32_t, WeightType, bool> types[] = {{2, WeightType::Int4, true},
                                                               {3, WeightType::Int4Aff, true},
                                                               {6, WeightType::Int8, true},
                                                               {8, WeightType::Int8, true},
                                                               {12, WeightType::Int4Aff, false}};
  for (const auto& [id, as, f16] : types) {
    const BlockType& t = *find_block_type(id);
    const std::int64_t blocks = 256 / t.values;
    std::string data = block_bytes(static_cast<std::size_t>(5 * blocks * t.bytes), id);
    for (std::size_t b = 0; b < data.size(); b += static_cast<std::size_t>(t.bytes))
      for (const std::size_t half : {1, 3}) data[b + half] &= 0x3f;  // finite scales
    const auto c = open_model(model().tensor("blk.0.ffn_down.weight", id, {5, 256}, data));
    const auto w = c->weight("model.layers.0.mlp.down_proj.weight", 5, 256);
    EXPECT_EQ(w->format().type, as) << t.name;
    EXPECT_EQ(w->format().group, 32);
    EXPECT_EQ(w->format().scales_are_f16, f16) << t.name;
    std::vector<float> expected(5 * 256);
    decode_blocks(t, bytes_of(data).data(), 5 * blocks, expected.data());
    EXPECT_EQ(dequantise(*w, 0, 5), expected) << t.name;
    EXPECT_EQ(dequantise(*w, 3, 2), std::vector(expected.begin() + 3 * 256, expected.end()));
    w->release(0, 5);
    EXPECT_THAT(c->notices(), IsEmpty());
  }
}

TEST(GgufWeights, TheOthersAreRequantisedOrKeptIn16BitAndSaySo) {
  for (const std::uint32_t id : {7u, 13u, 14u}) {
    const BlockType& t = *find_block_type(id);
    const std::int64_t blocks = 256 / t.values;
    std::string data = block_bytes(static_cast<std::size_t>(2 * blocks * t.bytes), id);
    for (std::size_t b = 0; b < data.size(); b += static_cast<std::size_t>(t.bytes))
      for (const std::size_t half : {1, 3, 209})
        if (half < static_cast<std::size_t>(t.bytes)) data[b + half] &= 0x3b;
    std::vector<float> exact(512);
    decode_blocks(t, bytes_of(data).data(), 2 * blocks, exact.data());
    const GgufFile f = model().tensor("blk.0.ffn_up.weight", id, {2, 256}, data);
    const std::string name = "model.layers.0.mlp.up_proj.weight";

    const auto c = open_model(f);
    const auto w = c->weight(name, 2, 256);
    EXPECT_EQ(w->format().type, WeightType::Int8);
    EXPECT_EQ(w->format().group, 32);
    const auto got = dequantise(*w, 0, 2);
    for (std::size_t g = 0; g < 512; g += 32) {
      float largest = 0;
      for (std::size_t i = g; i < g + 32; ++i) largest = std::max(largest, std::fabs(exact[i]));
      for (std::size_t i = g; i < g + 32; ++i)
        EXPECT_LE(std::fabs(got[i] - exact[i]), largest / 127 * 0.51f) << t.name << " " << i;
    }
    EXPECT_THAT(c->notices(),
                ElementsAre(AllOf(HasSubstr("1 tensor stored as " + std::string(t.name)),
                                  HasSubstr("requantised to int8 group 32"))));
    EXPECT_EQ(c->tensors()[0].stored_type + c->tensors()[1].stored_type,
              "F32" + std::string(t.name));

    const auto kept = open_model(f, true);
    const auto k = kept->weight(name, 2, 256);
    EXPECT_EQ(k->format().type, WeightType::F16);
    const auto halves = dequantise(*k, 0, 2);
    for (std::size_t i = 0; i < 512; ++i)
      EXPECT_EQ(halves[i], half_to_float(float_to_half(exact[i]))) << t.name << " " << i;
    EXPECT_THAT(kept->notices(), ElementsAre(HasSubstr("rounded to fp16")));
  }
}

TEST(GgufWeights, PlainTypes) {
  const std::vector<float> values = {1, -0.5f, 3, 0, 2, 7};
  const auto c =
      open_model(model()
                     .tensor("blk.0.ffn_up.weight", 0, {2, 3}, test::raw(values))
                     .tensor("blk.0.ffn_gate.weight", 1, {2, 3}, test::halves(values))
                     .tensor("blk.0.ffn_down.weight", 30, {2, 3}, test::bfloats(values)));
  const std::pair<const char*, WeightType> expected[] = {
      {"up", WeightType::F32}, {"gate", WeightType::F16}, {"down", WeightType::BF16}};
  for (const auto& [which, type] : expected) {
    const auto w = c->weight(fmt::format("model.layers.0.mlp.{}_proj.weight", which), 2, 3);
    EXPECT_EQ(w->format().type, type);
    EXPECT_EQ(dequantise(*w, 0, 2), values);
  }
}

// Interleaved by the converter: within a head, row i of half h goes to 2i + h.
TEST(GgufWeights, LlamaQueryAndKeyRowsAreReordered) {
  for (const std::string arch : {"llama", "qwen2"}) {
    std::vector<float> rows(64 * 2), bias(32);
    for (std::size_t r = 0; r < 64; ++r) rows[2 * r] = rows[2 * r + 1] = static_cast<float>(r);
    std::iota(bias.begin(), bias.end(), 0.0f);
    const auto c = open_model(model(arch)
                                  .f32_tensor("blk.0.attn_q.weight", {64, 2}, rows)
                                  .f32_tensor("blk.0.attn_v.weight", {64, 2}, rows)
                                  .f32_tensor("blk.0.attn_k.bias", {32}, bias));
    const auto stored_row = [&](std::int64_t r) {
      if (arch != "llama") return r;
      const std::int64_t head = r / 32, half = r % 32 / 16, i = r % 16;
      return head * 32 + 2 * i + half;
    };
    const auto q = c->weight("model.layers.0.self_attn.q_proj.weight", 64, 2);
    const auto all = dequantise(*q, 0, 64), part = dequantise(*q, 40, 3);
    for (std::int64_t r = 0; r < 64; ++r)
      EXPECT_EQ(all[static_cast<std::size_t>(2 * r + 1)], static_cast<float>(stored_row(r)))
          << arch << r;
    EXPECT_EQ(part[0], static_cast<float>(stored_row(40)));
    EXPECT_EQ(part[4], static_cast<float>(stored_row(42)));
    q->release(40, 3);
    const auto k = c->vector("model.layers.0.self_attn.k_proj.bias", 32);
    for (std::int64_t r = 0; r < 32; ++r)
      EXPECT_EQ(k[static_cast<std::size_t>(r)], static_cast<float>(stored_row(r))) << arch << r;
    EXPECT_EQ(dequantise(*c->weight("model.layers.0.self_attn.v_proj.weight", 64, 2), 0, 64), rows);
  }
  const auto odd =
      open_model(model().f32_tensor("blk.0.attn_q.weight", {33, 1}, std::vector<float>(33, 1)));
  EXPECT_THAT(error_of([&] { odd->weight("model.layers.0.self_attn.q_proj.weight", 33, 1); }),
              AllOf(HasSubstr("attn_q.weight"), HasSubstr("no multiple of the head dimension")));
}

TEST(GgufWeights, MissingShapesAndNonFiniteValuesAreNamed) {
  std::string q4(2 * 18, '\1'), q5k(256 / 256 * 176, '\1');
  q4[18] = '\0';
  q4[19] = '\x7c';  // the scale of row 1: infinity
  q5k[1] = '\x7e';  // NaN
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto c = open_model(model()
                                .tensor("blk.0.ffn_up.weight", 2, {2, 32}, q4)
                                .tensor("blk.0.ffn_down.weight", 13, {1, 256}, q5k)
                                .f32_tensor("output_norm.weight", {2}, {1, nan})
                                .f32_tensor("blk.0.ffn_gate.weight", {1, 2}, {nan, 1}));
  const std::string up = "model.layers.0.mlp.up_proj.weight";
  EXPECT_THAT(error_of([&] { c->weight("model.no.weight", 1, 1); }),
              AllOf(HasSubstr("m.gguf"), HasSubstr("\"model.no.weight\" is missing")));
  EXPECT_THAT(error_of([&] { c->weight(up, 3, 32); }),
              AllOf(HasSubstr("ffn_up"), HasSubstr("expected [3, 32], got [2, 32]")));
  EXPECT_THAT(error_of([&] { c->vector(up, 64); }), HasSubstr("expected [64], got [2, 32]"));
  EXPECT_NO_THROW(dequantise(*c->weight(up, 2, 32), 0, 1));
  for (const auto& [name, n, k] : {std::tuple{"up", 2, 32}, {"down", 1, 256}, {"gate", 1, 2}}) {
    const auto w = c->weight(fmt::format("model.layers.0.mlp.{}_proj.weight", name), n, k);
    EXPECT_THAT(error_of([&, rows = n] { dequantise(*w, 0, rows); }),
                AllOf(HasSubstr(fmt::format("ffn_{}.weight", name)), HasSubstr("not finite")));
  }
  EXPECT_THAT(error_of([&] { c->vector("model.norm.weight", 2); }),
              AllOf(HasSubstr("output_norm"), HasSubstr("not finite")));
}

}  // namespace
}  // namespace nibble
