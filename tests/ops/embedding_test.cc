// embedding: rows of a packed matrix as they were, which also shows that packing loses none.
#include <gtest/gtest.h>

#include <algorithm>

#include "harness.h"

namespace nibble::harness {
namespace {

TEST(Embedding, RowsOfEveryType) {
  for (const WeightType t : {WeightType::Int4, WeightType::Int4Aff, WeightType::Int8,
                             WeightType::F16, WeightType::BF16, WeightType::F32}) {
    // A group that a device's stage of 64 columns has two of, and one of several stages.
    for (const auto& [k, group] : {std::pair{96, 32}, std::pair{384, 128}}) {
      const RandomWeight source(t, 50, k, group, 1);
      for (const auto& b : backends()) {
        const auto w = b->pack(source, 1);
        const std::int32_t ids[] = {49, 0, 17, 16};
        Buffer to(*b, static_cast<std::size_t>(4 * k));
        b->embedding({ids, w.get(), 4, to.data()});
        const std::vector<float> h = to.copy();
        for (int i = 0; i < 4; ++i)
          EXPECT_TRUE(same_bits({h.begin() + i * k, h.begin() + (i + 1) * k},
                                dequantise(source, ids[i], 1)))
              << weight_type_name(t) << " " << k << " " << b->describe();
        const std::int32_t bad = 50;
        EXPECT_THROW(b->embedding({&bad, w.get(), 1, to.data()}), Error);
      }
    }
  }
}

// A device packs a long matrix in runs that follow one another through the same memory.
TEST(Embedding, RowsOfALongMatrix) {
  constexpr int kN = 2103, kK = 4100;
  const RandomWeight source(WeightType::F32, kN, kK, 0, 2);
  std::vector<std::int32_t> ids = {kN - 1};
  for (std::int32_t id = 0; id < kN; id += 61) ids.push_back(id);
  for (Backend* b : last_two()) {
    const auto w = b->pack(source, 1);
    Buffer to(*b, ids.size() * kK);
    b->embedding({ids.data(), w.get(), static_cast<std::int64_t>(ids.size()), to.data()});
    const std::vector<float> h = to.copy();
    for (std::size_t i = 0; i < ids.size(); ++i)
      EXPECT_TRUE(std::equal(h.begin() + i * kK, h.begin() + (i + 1) * kK,
                             dequantise(source, ids[i], 1).begin()))
          << ids[i] << " " << b->describe();
  }
}

// A file that is damaged far inside a matrix: an error, after which the next is packed as ever.
TEST(Embedding, AfterAMatrixThatCannotBeRead) {
  struct Damaged final : WeightSource {
    Damaged() : WeightSource("damaged", {WeightType::F32, 2103, 4100, 0, true}) {}
    void read(std::int64_t row, std::int64_t count, WeightRows& out) const override {
      require(row + count <= 1500, "damaged: row {}", row);
      out.values.assign(static_cast<std::size_t>(count * format_.k), 1.0f);
    }
  };
  const RandomWeight source(WeightType::Int4, 50, 384, 128, 1);
  for (Backend* b : last_two()) {
    EXPECT_THROW(b->pack(Damaged(), 1), Error) << b->describe();
    const auto w = b->pack(source, 1);
    const std::int32_t id = 49;
    Buffer to(*b, 384);
    b->embedding({&id, w.get(), 1, to.data()});
    EXPECT_TRUE(same_bits(to.copy(), dequantise(source, id, 1))) << b->describe();
  }
}

}  // namespace
}  // namespace nibble::harness
