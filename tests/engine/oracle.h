// The oracles in tests/data: checkpoints with the logits that transformers computed, and how an
// engine is fed and compared.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "base/file.h"
#include "checkpoint/safetensors.h"
#include "engine/engine.h"

namespace nibble::oracle {

inline std::filesystem::path directory(const std::string& name) {
  // Carried to another machine (bench/gpu.sh), a test runs in the root of a tree that lies
  // elsewhere.
  const std::filesystem::path data = NIBBLE_TEST_DATA;
  return (std::filesystem::exists(data) ? data : std::filesystem::path("tests/data")) / name;
}

struct Prompt {
  std::vector<std::int32_t> ids;  // prompt and the greedy tokens after it
  std::vector<float> logits;      // [ids.size(), vocab]
};

inline std::vector<Prompt> prompts(const std::string& name) {
  const auto json = nlohmann::json::parse(read_file(directory(name) / "expected.json"));
  const MappedFile file(directory(name) / "expected.safetensors");
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

// Runs every prompt, whole, through the checkpoint of tests/data.
inline Errors compare(const std::string& name, Activations a, const std::string& device = "cpu") {
  const auto checkpoint = Checkpoint::open(directory(name));
  Errors e;
  std::vector<double> rms;
  for (const Prompt& p : prompts(name)) {
    Engine engine(
        *checkpoint,
        {.activations = a, .device = device, .threads = 2, .context = 512, .exact_prefill = true});
    const auto vocab = static_cast<std::size_t>(engine.vocab());
    const Engine::Input in{0, p.ids, Engine::Logits::All};
    const std::span<const float> rows = engine.forward({&in, 1});
    const std::vector<float> y(rows.begin(), rows.end());
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

inline std::vector<std::int32_t> random_ids(std::size_t n, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<std::int32_t> ids(n);
  for (auto& id : ids) id = static_cast<std::int32_t>(rng() % 320);
  return ids;
}

// Logits of every position of `ids`, fed in the given cuts.
inline std::vector<float> feed(Engine& e, int slot, const std::vector<std::int32_t>& ids,
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

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace nibble::oracle
