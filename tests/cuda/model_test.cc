// Whole models on the emulated CUDA kernels: the CPU's logits, bit for bit, for prompts in several
// cuts and for sequences in company.
#include <gtest/gtest.h>

#include "cuda/emulated.h"
#include "cuda/runner.h"

namespace nibble {
namespace {

class EmulatedModel : public testing::TestWithParam<const char*> {};

TEST_P(EmulatedModel, HasTheCpusBits) {
  const auto checkpoint = Checkpoint::open(oracle::directory(GetParam()));
  const auto ids = oracle::random_ids(40, 1);
  for (const Activations a : {Activations::Int16, Activations::Fp32}) {
    Runner cpu(*checkpoint, make_backend("cpu", 1), a, 2);
    Runner cuda(*checkpoint, emulated_backend(5, 2), a, 2);
    const std::vector<float> want = cpu.feed(0, ids, 40);
    EXPECT_TRUE(oracle::same_bits(cuda.feed(0, ids, 40), want)) << "one step";
    if (a == Activations::Fp32) continue;
    EXPECT_TRUE(oracle::same_bits(cuda.feed(1, ids, 7), want)) << "in sevens";
  }
}

// In fp16: the same bits for every split at multiples of 64 and in company, near the exact ones.
TEST_P(EmulatedModel, PromptsInHalf) {
  const auto checkpoint = Checkpoint::open(oracle::directory(GetParam()));
  const auto ids = oracle::random_ids(70, 1), other = oracle::random_ids(21, 2);
  Runner half(*checkpoint, emulated_backend(5, 2), Activations::Half, 3, 91);
  const std::vector<float> want = half.feed(0, ids, 70);
  EXPECT_TRUE(oracle::same_bits(half.feed(1, ids, 64), want)) << "split";
  Runner again(*checkpoint, emulated_backend(0, 1), Activations::Half, 3, 91);
  std::vector<float> both = again.step({{2, other}, {0, ids}});
  both.erase(both.begin(), both.end() - static_cast<std::ptrdiff_t>(want.size()));
  EXPECT_TRUE(oracle::same_bits(both, want)) << "in company";
  Runner exact(*checkpoint, emulated_backend(0, 1), Activations::Int16, 1, 70);
  const std::vector<float> near = exact.feed(0, ids, 70);
  double square = 0;
  for (std::size_t i = 0; i < want.size(); ++i)
    square += std::pow(static_cast<double>(want[i]) - near[i], 2);
  const double rms = std::sqrt(square / static_cast<double>(want.size()));
  EXPECT_TRUE(rms > 0 && rms < 0.05) << rms;
}

// What the engine reserves holds all that a model and its state take.
TEST_P(EmulatedModel, LiesInOneAllocation) {
  const auto checkpoint = Checkpoint::open(oracle::directory(GetParam()));
  const auto shape = SequenceState::shape(checkpoint->config(), 8, 256, KvType::I16, 1);
  constexpr std::int64_t kRows = 2048;
  const std::uint64_t activations = activation_bytes(checkpoint->config(), kRows);
  const auto backend = emulated_backend(0, 1);
  backend->reserve(estimate_weight_bytes(*checkpoint) + shape.bytes() + activations);
  const std::uint64_t before = backend->scratch_memory();
  const auto model = Model::load(*checkpoint, *backend, kRows, {});
  const SequenceState state(*backend, shape);
  EXPECT_EQ(model->scratch_bytes(), activations);
  const std::uint64_t after = backend->scratch_memory();
  backend->reserve(0);  // what is not spare remains, and a spare MiB
  const std::uint64_t spare = after - backend->scratch_memory() + (1 << 20);
  EXPECT_GE(before - spare, model->weight_bytes() + shape.bytes() + activations);
}

TEST_P(EmulatedModel, DecodesInCompany) {
  const auto checkpoint = Checkpoint::open(oracle::directory(GetParam()));
  Runner cpu(*checkpoint, make_backend("cpu", 1), Activations::Int16, 3);
  Runner cuda(*checkpoint, emulated_backend(0, 1), Activations::Int16, 3);
  std::vector<std::vector<std::int32_t>> ids;
  for (unsigned s = 0; s < 3; ++s) ids.push_back(oracle::random_ids(9, 10 + s));
  for (std::size_t i = 0; i < 9; ++i) {  // slot 2 from the fourth step on, slot 0 until the sixth
    std::vector<std::pair<int, std::vector<std::int32_t>>> of;
    for (int s = 2; s >= 0; --s)
      if ((s != 2 || i > 2) && (s != 0 || i < 6))
        of.push_back({s, {ids[static_cast<std::size_t>(s)][i]}});
    const std::vector<float> want = cpu.step(of);
    ASSERT_TRUE(oracle::same_bits(cuda.step(of), want)) << "step " << i;
  }
}

// Operations are run again to be timed, before a step is recorded; no bit may show it.
TEST(EmulatedBackend, MeasuresPlansUnseen) {
  const auto checkpoint = Checkpoint::open(oracle::directory("tiny-qwen3_5"));
  Runner cpu(*checkpoint, make_backend("cpu", 1), Activations::Int16, 1);
  Runner cuda(*checkpoint, emulated_backend(0, 0, true), Activations::Int16, 1);
  for (const std::int32_t id : oracle::random_ids(4, 5))  // eager, recorded, replayed twice
    ASSERT_TRUE(oracle::same_bits(cuda.step({{0, {id}}}), cpu.step({{0, {id}}})));
}

// One recorded step serves sequences at other positions in turn.
TEST(EmulatedBackend, ReplaysForWhoeverComes) {
  const auto checkpoint = Checkpoint::open(oracle::directory("tiny-qwen3_5"));
  Runner cpu(*checkpoint, make_backend("cpu", 1), Activations::Int16, 2);
  Runner cuda(*checkpoint, emulated_backend(0, 0), Activations::Int16, 2);
  const auto ids = oracle::random_ids(9, 6);
  constexpr int kSlots[] = {0, 0, 0, 0, 1, 0, 1, 1, 0};
  for (std::size_t i = 0; i < 9; ++i)
    ASSERT_TRUE(
        oracle::same_bits(cuda.step({{kSlots[i], {ids[i]}}}), cpu.step({{kSlots[i], {ids[i]}}})))
        << "step " << i;
}

// A step recorded for rows of different sequences is not one for rows of the same.
TEST(EmulatedBackend, KnowsRowsOfOneSequence) {
  const auto checkpoint = Checkpoint::open(oracle::directory("tiny-llama"));
  Runner cpu(*checkpoint, make_backend("cpu", 1), Activations::Int16, 2);
  Runner cuda(*checkpoint, emulated_backend(0, 1), Activations::Int16, 2);  // later rows first
  const auto ids = oracle::random_ids(10, 7);
  for (std::size_t i = 0; i < 10; i += 2) {  // eager, recorded, replayed, then another's
    std::vector<std::pair<int, std::vector<std::int32_t>>> of = {{0, {ids[i]}}, {1, {ids[i + 1]}}};
    if (i == 6) of = {{0, {ids[i], ids[i + 1]}}};
    ASSERT_TRUE(oracle::same_bits(cuda.step(of), cpu.step(of))) << "step " << i / 2;
  }
}

INSTANTIATE_TEST_SUITE_P(Oracles, EmulatedModel,
                         testing::Values("tiny-llama", "tiny-qwen3_5", "tiny-qwen3_5-heads",
                                         "tiny-qwen3_5-moe"),
                         [](const auto& i) {
                           std::string s = i.param;
                           std::replace(s.begin(), s.end(), '-', '_');
                           return s;
                         });

}  // namespace
}  // namespace nibble
