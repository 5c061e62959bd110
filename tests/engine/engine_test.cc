// The engine on a real checkpoint: the oracle's logits, and the promise of equal bits.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "base/file.h"
#include "oracle.h"

namespace nibble {
namespace {

const std::filesystem::path kOracle = oracle::directory("tiny-llama");

const Checkpoint& checkpoint() {
  static const auto c = Checkpoint::open(kOracle);
  return *c;
}

TEST(Oracle, Fp32) {
  const oracle::Errors e = oracle::compare("tiny-llama", Activations::Fp32);
  EXPECT_LE(e.worst, 2e-3);
  EXPECT_EQ(e.wrong_argmax, 0);
}

TEST(Oracle, Int16) {
  const oracle::Errors e = oracle::compare("tiny-llama", Activations::Int16);
  EXPECT_LE(e.median_rms, 0.003);
  EXPECT_LE(e.worst, 0.1);
}

using oracle::feed;
using oracle::random_ids;
using oracle::same_bits;

TEST(Promise, BitsAgreeOverSplitsThreadsAndSlots) {
  const auto ids = random_ids(250, 1);
  for (const Activations a : {Activations::Int16, Activations::Int8, Activations::Fp32}) {
    std::vector<float> want;
    for (const int threads : {1, 2, 3, 5}) {
      Engine e(checkpoint(), {.activations = a, .threads = threads, .context = 300, .slots = 3});
      const std::vector<float> whole = feed(e, 0, ids, {256});
      if (want.empty()) want = whole;
      ASSERT_TRUE(same_bits(whole, want)) << threads << " threads";
      ASSERT_TRUE(same_bits(feed(e, 1, ids, {64}), want));
      ASSERT_TRUE(same_bits(feed(e, 2, ids, {128, 64}), want));
      e.truncate(2, 64);  // replay from a kept prefix
      const std::vector<std::int32_t> rest(ids.begin() + 64, ids.end());
      ASSERT_TRUE(same_bits(feed(e, 2, rest, {192}), {want.begin() + 64 * 320, want.end()}));
    }
  }
}

// Eight sequences of different lengths join, leave and are cut at random; every logit is the one
// the sequence has alone.
TEST(Promise, ASequenceIsTheSameInAnyCompany) {
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<std::vector<float>> alone;
  Engine solo(checkpoint(), {.threads = 1, .context = 128});
  for (unsigned s = 0; s < 8; ++s) {
    ids.push_back(random_ids(20 + 13 * s, 100 + s));
    solo.reset(0);
    alone.push_back(feed(solo, 0, ids.back(), {1}));
  }
  Engine e(checkpoint(), {.threads = 3, .context = 128, .slots = 8});
  std::mt19937 rng(5);
  for (int step = 0, compared = 0; step < 200 || compared < 500; ++step) {
    std::vector<Engine::Input> inputs;
    std::vector<std::size_t> from;
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
      from.push_back(at + n - 1);
    }
    if (inputs.empty()) continue;
    std::shuffle(inputs.begin(), inputs.end(), std::mt19937(static_cast<unsigned>(step)));
    std::shuffle(from.begin(), from.end(), std::mt19937(static_cast<unsigned>(step)));
    const auto y = e.forward(inputs);
    for (std::size_t i = 0; i < inputs.size(); ++i, ++compared) {
      const auto& want = alone[static_cast<std::size_t>(inputs[i].slot)];
      ASSERT_EQ(std::memcmp(y.data() + i * 320, want.data() + from[i] * 320, 320 * sizeof(float)),
                0)
          << "step " << step << " slot " << inputs[i].slot << " position " << from[i];
    }
  }
}

TEST(Engine, RefusesWhatCannotBeAndChangesNothing) {
  Engine e(checkpoint(), {.threads = 1, .context = 10, .slots = 2});
  const std::vector<std::int32_t> good = {1, 2, 3}, bad = {1, 320}, negative = {-1}, many(11, 1);
  const auto run = [&](std::vector<Engine::Input> in) { return e.forward(in).size(); };
  EXPECT_EQ(run({{0, good}}), 320u);
  EXPECT_THROW(run({}), Error);
  EXPECT_THROW(run({{0, bad}}), Error);
  EXPECT_THROW(run({{0, negative}}), Error);
  EXPECT_THROW(run({{2, good}}), Error);
  EXPECT_THROW(run({{1, good}, {1, good}}), Error);
  EXPECT_THROW(run({{1, many}}), Error);
  EXPECT_THROW(run({{1, {}}}), Error);
  EXPECT_THROW(e.truncate(0, 4), Error);
  EXPECT_EQ(e.length(0), 3);
  EXPECT_EQ(e.length(1), 0);
  EXPECT_EQ(run({{1, good, Engine::Logits::None}}), 0u);
  EXPECT_THROW(Engine(checkpoint(), {.device = "abacus"}), UsageError);
  EXPECT_THROW(Engine(checkpoint(), {.context = 1 << 20}), UsageError);
  EXPECT_THROW(Engine(checkpoint(), {.slots = 0}), UsageError);
}

TEST(Engine, MemoryIsRefusedWithFigures) {
  char t[] = "/tmp/nibble-engine-XXXXXX";
  const std::filesystem::path dir = ::mkdtemp(t);
  std::filesystem::copy(kOracle, dir, std::filesystem::copy_options::recursive);
  auto config = nlohmann::json::parse(read_file(dir / "config.json"));
  config["max_position_embeddings"] = 1 << 30;
  write_file(dir / "config.json", config.dump());
  const auto huge = Checkpoint::open(dir);
  try {
    Engine e(*huge, {.context = 1 << 30});  // a terabyte of KV cache
    ADD_FAILURE() << "loaded";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("not enough memory: weights"), std::string::npos)
        << e.what();
  }
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace nibble
