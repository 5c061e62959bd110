// Qwen3.5 and 3.6 models, dense and mixture of experts: the oracles' logits, the promise of equal
// bits, and a state that is reset, copied and taken back as one.
#include <gtest/gtest.h>

#include <algorithm>

#include "model/model.h"
#include "model/sequence_state.h"
#include "oracle.h"

namespace nibble {
namespace {

using oracle::feed;
using oracle::random_ids;
using oracle::same_bits;

class Hybrid : public testing::TestWithParam<const char*> {
 protected:
  const std::unique_ptr<Checkpoint> checkpoint_ = Checkpoint::open(oracle::directory(GetParam()));
};

TEST_P(Hybrid, OracleInFp32) {
  const oracle::Errors e = oracle::compare(GetParam(), Activations::Fp32);
  EXPECT_LE(e.worst, 2e-3);
  EXPECT_EQ(e.wrong_argmax, 0);
}

TEST_P(Hybrid, OracleInInt16) {
  const oracle::Errors e = oracle::compare(GetParam(), Activations::Int16);
  EXPECT_LE(e.median_rms, 0.003);
  EXPECT_LE(e.worst, 0.1);
}

TEST_P(Hybrid, BitsAgreeOverSplitsThreadsAndSlots) {
  const auto ids = random_ids(250, 1);
  for (const Activations a : {Activations::Int16, Activations::Int8, Activations::Fp32}) {
    std::vector<float> want;
    for (const int threads : {1, 2, 5}) {
      Engine e(*checkpoint_, {.activations = a, .threads = threads, .context = 300, .slots = 3});
      const std::vector<float> whole = feed(e, 0, ids, {256});
      if (want.empty()) want = whole;
      ASSERT_TRUE(same_bits(whole, want)) << threads << " threads";
      ASSERT_TRUE(same_bits(feed(e, 1, ids, {64}), want));
      ASSERT_TRUE(same_bits(feed(e, 2, ids, {17, 1, 1, 100}), want));  // on the CPU, any cut
      e.reset(2);
      ASSERT_TRUE(same_bits(feed(e, 2, ids, {128}), want)) << "a slot used again";
    }
  }
}

// Eight sequences of different lengths join, leave and start again at random.
TEST_P(Hybrid, ASequenceIsTheSameInAnyCompany) {
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<std::vector<float>> alone;
  Engine solo(*checkpoint_, {.threads = 1, .context = 128});
  for (unsigned s = 0; s < 8; ++s) {
    ids.push_back(random_ids(20 + 13 * s, 100 + s));
    solo.reset(0);
    alone.push_back(feed(solo, 0, ids.back(), {1}));
  }
  Engine e(*checkpoint_, {.threads = 3, .context = 128, .slots = 8});
  std::mt19937 rng(5);
  for (int step = 0, compared = 0; compared < 300; ++step) {
    std::vector<Engine::Input> inputs;
    for (int slot = 0; slot < 8; ++slot) {
      const auto s = static_cast<std::size_t>(slot);
      const auto at = static_cast<std::size_t>(e.length(slot));
      if (rng() % 3 == 0) continue;
      if (at == ids[s].size() || rng() % 50 == 0) {
        e.reset(slot);
        continue;
      }
      const std::size_t n =
          std::min<std::size_t>(1 + (rng() % 4 == 0 ? rng() % 9 : 0), ids[s].size() - at);
      inputs.push_back({slot, std::span(ids[s]).subspan(at, n), Engine::Logits::Last});
    }
    if (inputs.empty()) continue;
    std::shuffle(inputs.begin(), inputs.end(), rng);
    const auto y = e.forward(inputs);
    for (std::size_t i = 0; i < inputs.size(); ++i, ++compared) {
      const int slot = inputs[i].slot;
      const auto row = static_cast<std::ptrdiff_t>(e.length(slot) - 1) * 320;
      ASSERT_EQ(std::memcmp(y.data() + i * 320, alone[static_cast<std::size_t>(slot)].data() + row,
                            320 * sizeof(float)),
                0)
          << "step " << step << " slot " << slot;
    }
  }
}

TEST_P(Hybrid, GoesBackToCheckpointsAndSaysWhatToReplay) {
  const auto ids = random_ids(100, 3);
  Engine e(*checkpoint_, {.threads = 2, .context = 128, .slots = 2, .checkpoints = 2});
  ASSERT_TRUE(e.recurrent());
  const std::vector<float> want = feed(e, 0, ids, {100});
  const auto rest = [&](int slot) {  // feeds what is missing, and compares
    const auto at = static_cast<std::size_t>(e.length(slot));
    const std::vector<std::int32_t> tail(ids.begin() + static_cast<std::ptrdiff_t>(at), ids.end());
    return same_bits(feed(e, slot, tail, {100}),
                     {want.begin() + static_cast<std::ptrdiff_t>(at) * 320, want.end()});
  };
  const auto up_to = [&](std::size_t n) {
    const auto at = static_cast<std::size_t>(e.length(0));
    const Engine::Input in{0, std::span(ids).subspan(at, n - at), Engine::Logits::None};
    e.forward({&in, 1});
  };
  EXPECT_EQ(e.truncate(0, 100), 0);
  EXPECT_EQ(e.truncate(0, 70), 70);  // no checkpoint: all of it again
  EXPECT_EQ(e.length(0), 0);
  for (const std::size_t at : {20u, 40u, 60u}) up_to(at), e.checkpoint(0);  // 20 is dropped
  EXPECT_TRUE(rest(0));
  EXPECT_EQ(e.truncate(0, 90), 30);
  EXPECT_EQ(e.length(0), 60);
  EXPECT_TRUE(rest(0));
  EXPECT_EQ(e.truncate(0, 60), 0);
  EXPECT_TRUE(rest(0));
  EXPECT_EQ(e.truncate(0, 59), 19);  // and 60 is no part of the sequence any more
  EXPECT_TRUE(rest(0));
  EXPECT_EQ(e.truncate(0, 99), 59);
  EXPECT_TRUE(rest(0));
  EXPECT_EQ(e.truncate(0, 30), 30);

  up_to(50);
  e.copy(0, 1);  // both go on
  EXPECT_EQ(e.length(1), 50);
  EXPECT_TRUE(rest(1));
  EXPECT_TRUE(rest(0));
}

// A step that fails half way has advanced some layers; recover() is what the engine then calls.
TEST_P(Hybrid, AFailedStepGoesBack) {
  const ModelConfig& c = checkpoint_->config();
  const auto ids = random_ids(40, 4);
  const auto backend = make_backend("cpu", 2);
  const auto model = Model::load(*checkpoint_, *backend, 64, {});
  SequenceState state(*backend, SequenceState::shape(c, 1, 64, KvType::I16, 2));
  const auto run = [&](std::size_t n) {  // the logits of the last of the next n tokens
    std::vector<float> y(static_cast<std::size_t>(c.vocab));
    std::vector<RowPlace> rows;
    const auto at = static_cast<std::size_t>(state.length(0));
    for (std::size_t i = 0; i < n; ++i) rows.push_back({0, static_cast<std::int32_t>(at + i)});
    const auto last = static_cast<std::int32_t>(n - 1);
    model->forward({.ids = std::span(ids).subspan(at, n),
                    .rows = rows,
                    .logits_of = {&last, 1},
                    .logits = y.data(),
                    .cache = state.cache(),
                    .delta = state.delta()});
    return y;
  };
  run(10), state.advance(0, 10);
  const std::vector<float> want = run(30);  // 30 rows went in, and nobody says advance
  state.recover(0);
  EXPECT_EQ(state.length(0), 0);
  run(10), state.advance(0, 10), state.checkpoint(0);
  EXPECT_TRUE(same_bits(run(30), want));
  EXPECT_FALSE(same_bits(run(30), want)) << "the state should have moved";
  state.recover(0);
  EXPECT_EQ(state.length(0), 10);
  EXPECT_TRUE(same_bits(run(30), want));
}

INSTANTIATE_TEST_SUITE_P(Oracles, Hybrid,
                         testing::Values("tiny-qwen3_5", "tiny-qwen3_5-heads", "tiny-qwen3_5-moe"),
                         [](const auto& i) {
                           std::string s = i.param;
                           std::replace(s.begin(), s.end(), '-', '_');
                           return s;
                         });

}  // namespace
}  // namespace nibble
