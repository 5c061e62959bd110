// The engine on a real checkpoint: the oracle's logits, and the promise of equal bits.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/file.h"
#include "checkpoint/safetensors.h"

namespace nibble {
namespace {

const std::filesystem::path kOracle = std::filesystem::path(NIBBLE_TEST_DATA) / "tiny-llama";

const Checkpoint& checkpoint() {
  static const auto c = Checkpoint::open(kOracle);
  return *c;
}

std::vector<float> copy(std::span<const float> s) { return {s.begin(), s.end()}; }

struct Prompt {
  std::vector<std::int32_t> ids;  // prompt and the greedy tokens after it
  std::vector<float> logits;      // [ids.size(), vocab]
};

std::vector<Prompt> prompts() {
  const auto json = nlohmann::json::parse(read_file(kOracle / "expected.json"));
  const MappedFile file(kOracle / "expected.safetensors");
  const auto tensors = parse_safetensors(file.bytes(), "expected.safetensors");
  std::vector<Prompt> out;
  for (const auto& p : json["prompts"]) {
    Prompt q{p["ids"].get<std::vector<std::int32_t>>(), {}};
    for (const std::int32_t id : p["greedy"]) q.ids.push_back(id);
    for (const StoredTensor& t : tensors)
      if (t.name == p["logits"].get<std::string>()) {
        q.logits.resize(t.data.size() / sizeof(float));
        std::memcpy(q.logits.data(), t.data.data(), t.data.size());
      }
    out.push_back(std::move(q));
  }
  return out;
}

// Error of every position against the oracle.
struct Errors {
  double worst = 0, median_rms = 0;
  int wrong_argmax = 0;  // where the oracle's margin exceeds 4e-3
};

Errors against_oracle(Activations a) {
  Errors e;
  std::vector<double> rms;
  for (const Prompt& p : prompts()) {
    Engine engine(checkpoint(), {.activations = a, .threads = 2, .context = 512});
    const auto vocab = static_cast<std::size_t>(engine.vocab());
    const Engine::Input in{0, p.ids, Engine::Logits::All};
    const std::vector<float> y = copy(engine.forward({&in, 1}));
    EXPECT_EQ(y.size(), p.logits.size());
    for (std::size_t i = 0; i < p.ids.size(); ++i) {
      const auto want = p.logits.begin() + static_cast<std::ptrdiff_t>(i * vocab);
      const auto got = y.begin() + static_cast<std::ptrdiff_t>(i * vocab);
      double sum = 0;
      for (std::size_t v = 0; v < vocab; ++v) {
        const double d = got[static_cast<std::ptrdiff_t>(v)] - want[static_cast<std::ptrdiff_t>(v)];
        e.worst = std::max(e.worst, std::fabs(d)), sum += d * d;
      }
      rms.push_back(std::sqrt(sum / static_cast<double>(vocab)));
      std::vector<float> sorted(want, want + static_cast<std::ptrdiff_t>(vocab));
      std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<>());
      if (sorted[0] - sorted[1] > 4e-3f &&
          std::max_element(want, want + static_cast<std::ptrdiff_t>(vocab)) - want !=
              std::max_element(got, got + static_cast<std::ptrdiff_t>(vocab)) - got)
        ++e.wrong_argmax;
    }
  }
  std::nth_element(rms.begin(), rms.begin() + static_cast<std::ptrdiff_t>(rms.size() / 2),
                   rms.end());
  e.median_rms = rms[rms.size() / 2];
  return e;
}

TEST(Oracle, Fp32) {
  const Errors e = against_oracle(Activations::Fp32);
  EXPECT_LE(e.worst, 2e-3);
  EXPECT_EQ(e.wrong_argmax, 0);
}

TEST(Oracle, Int16) {
  const Errors e = against_oracle(Activations::Int16);
  EXPECT_LE(e.median_rms, 0.003);
  EXPECT_LE(e.worst, 0.1);
}

std::vector<std::int32_t> random_ids(std::size_t n, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<std::int32_t> ids(n);
  for (auto& id : ids) id = static_cast<std::int32_t>(rng() % 320);
  return ids;
}

// Logits of every position of `ids`, fed in the given cuts.
std::vector<float> feed(Engine& e, int slot, const std::vector<std::int32_t>& ids,
                        const std::vector<std::size_t>& cuts) {
  std::vector<float> all;
  std::size_t at = 0;
  for (std::size_t c = 0; at < ids.size(); ++c) {
    const std::size_t n = std::min(cuts[c % cuts.size()], ids.size() - at);
    const Engine::Input in{slot, std::span(ids).subspan(at, n), Engine::Logits::All};
    const auto y = e.forward({&in, 1});
    all.insert(all.end(), y.begin(), y.end());
    at += n;
  }
  return all;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

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
