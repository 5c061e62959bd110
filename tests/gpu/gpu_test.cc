// On a real device (label gpu; skipped, saying why, where there is none): whole models give the
// CPU's bits, in prompts, in company, from recorded graphs.
#include <gtest/gtest.h>

#include <cctype>
#include <filesystem>

#include "backend/cuda/make.h"
#include "cuda/runner.h"
#include "ops/top_logits.h"

namespace nibble {
namespace {

// The device's backend, or null and why not.
std::unique_ptr<Backend> device(std::string& why) {
  try {
    return cuda::make(0);
  } catch (const Error& e) {
    why = e.what();
    return nullptr;
  }
}

class GpuModel : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    std::string why;
    if (device(why) == nullptr) GTEST_SKIP() << "SKIPPED: " << why;
  }
};

TEST_P(GpuModel, HasTheCpusBits) {
  std::string why;
  const auto checkpoint = Checkpoint::open(oracle::directory(GetParam()));
  const auto ids = oracle::random_ids(120, 1);
  for (const Activations a : {Activations::Int16, Activations::Int8, Activations::Fp32}) {
    Runner cpu(*checkpoint, make_backend("cpu", 0), a, 2);
    Runner gpu(*checkpoint, device(why), a, 2);
    const std::vector<float> want = cpu.feed(0, ids, 64);
    EXPECT_TRUE(oracle::same_bits(gpu.feed(0, ids, 64), want)) << "in sixty-fours";
    EXPECT_TRUE(oracle::same_bits(gpu.feed(1, ids, 1), want)) << "one by one, from a graph";
  }
}

TEST_P(GpuModel, DecodesInCompany) {
  std::string why;
  const auto checkpoint = Checkpoint::open(oracle::directory(GetParam()));
  Runner cpu(*checkpoint, make_backend("cpu", 0), Activations::Int16, 8);
  Runner gpu(*checkpoint, device(why), Activations::Int16, 8);
  std::vector<std::vector<std::int32_t>> ids;
  for (unsigned s = 0; s < 8; ++s) ids.push_back(oracle::random_ids(100, 10 + s));
  std::vector<std::size_t> at(8);
  std::mt19937 rng(3);
  for (int i = 0; i < 60; ++i) {  // a random choice of slots in random order
    std::vector<int> slots{0, 1, 2, 3, 4, 5, 6, 7};
    std::shuffle(slots.begin(), slots.end(), rng);
    slots.resize(1 + rng() % 8);
    std::vector<std::pair<int, std::vector<std::int32_t>>> of;
    for (const int s : slots)
      of.push_back({s, {ids[static_cast<std::size_t>(s)][at[static_cast<std::size_t>(s)]++]}});
    const std::vector<float> want = cpu.step(of);
    ASSERT_TRUE(oracle::same_bits(gpu.step(of), want)) << "step " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Oracles, GpuModel,
                         testing::Values("tiny-llama", "tiny-qwen3_5", "tiny-qwen3_5-heads",
                                         "tiny-qwen3_5-moe"),
                         [](const auto& i) {
                           std::string s = i.param;
                           std::replace(s.begin(), s.end(), '-', '_');
                           return s;
                         });

// The oracles' own bounds, by the engine.
TEST(Gpu, KeepsTheOraclesBounds) {
  std::string why;
  if (device(why) == nullptr) GTEST_SKIP() << "SKIPPED: " << why;
  const oracle::Errors e = oracle::compare("tiny-llama", Activations::Int16, "cuda");
  EXPECT_LE(e.median_rms, 0.003);
  EXPECT_LE(e.worst, 0.1);
}

// The answer of a prompt at temperature 0, as the engine gives it: from the device's largest
// logits, whose values are the CPU's bits.
class GpuAnswer : public testing::TestWithParam<const char*> {};
TEST_P(GpuAnswer, HasTheCpusGreedyTokens) {
  std::string why;
  if (device(why) == nullptr) GTEST_SKIP() << "SKIPPED: " << why;
  const std::filesystem::path path = std::filesystem::path(NIBBLE_REPO) / "models" / GetParam();
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "SKIPPED: no " << path;
  const auto checkpoint = Checkpoint::open(path);
  constexpr int kPrompt = 100, kTokens = 64;
  const auto answer = [&](const char* name, std::vector<float>& values) {
    Engine e(*checkpoint, {.device = name, .context = 256, .exact_prefill = true});
    std::vector<std::int32_t> tokens;
    for (int i = 0; i < kPrompt; ++i)
      tokens.push_back(static_cast<std::int32_t>(uniform(1, i) * static_cast<double>(e.vocab())));
    std::vector<float> top(kTopLogits);
    std::vector<std::int32_t> ids(kTopLogits);
    for (std::size_t at = 0; tokens.size() < kPrompt + kTokens;) {
      const Engine::Input in{0, std::span(tokens).subspan(at), Engine::Logits::Last, at > 0};
      at = tokens.size();
      if (const auto rows = e.forward_top({&in, 1}); !rows.empty()) {
        top.assign(rows[0].values.begin(), rows[0].values.end());
        ids.assign(rows[0].ids.begin(), rows[0].ids.end());
        EXPECT_EQ(rows[0].bad, -1);
      } else {
        top_logits_reference(e.logits().data(), e.vocab(), top.data(), ids.data());
      }
      tokens.push_back(ids[0]);
      values.insert(values.end(), top.begin(), top.end());
    }
    return tokens;
  };
  std::vector<float> values[2];
  EXPECT_EQ(answer("cuda", values[0]), answer("cpu", values[1]));
  EXPECT_TRUE(oracle::same_bits(values[0], values[1]));
}
INSTANTIATE_TEST_SUITE_P(Models, GpuAnswer,
                         testing::Values("kjv-qwen3_5", "kjv-qwen3_5-moe",
                                         "SmolLM2-135M-Instruct.Q4_1.gguf"),
                         [](const auto& i) {
                           std::string s = i.param;
                           for (char& c : s)
                             if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
                           return s;
                         });

}  // namespace
}  // namespace nibble
