// A model made of a hash: the logits of a position depend on every token before it and on whether
// it was prefilled or decoded, as a real engine's bits may. It refuses what the engine's contract
// forbids.
#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <stdexcept>
#include <vector>

#include "engine/stepper.h"
#include "ops/top_logits.h"
#include "text/tokenizer.h"

namespace nibble {

inline std::uint64_t hash_step(std::uint64_t h, std::uint64_t x) {
  h = (h ^ x) * 0x9e3779b97f4a7c15u;
  return h ^ (h >> 29);
}

class FakeStepper : public Stepper {
 public:
  using Override =
      std::function<void(const std::vector<std::int32_t>& history, std::span<float> row)>;

  FakeStepper(int slots, std::int64_t context, std::int64_t vocab)
      : slots_(slots), context_(context), vocab_(vocab) {}

  std::span<const float> forward(std::span<const Engine::Input> inputs) override {
    ++forwards;
    if (throw_at == forwards) throw std::runtime_error("engine fault");
    EXPECT_LE(inputs.size(), static_cast<std::size_t>(Engine::kMaxSequences));
    std::set<int> used;
    std::size_t rows = 0, decodes = 0;
    for (const auto& in : inputs) {
      EXPECT_TRUE(used.insert(in.slot).second) << "a slot twice in a step";
      EXPECT_FALSE(in.tokens.empty());
      rows += in.tokens.size();
      decodes += in.tokens.size() == 1;
    }
    EXPECT_LE(rows, static_cast<std::size_t>(prefill_rows()));
    EXPECT_TRUE(decodes == 0 || decodes == inputs.size()) << "decode and prefill mixed";
    logits_.clear();
    for (const auto& in : inputs) feed(in, decodes > 0);
    return logits_;
  }
  std::span<const TopLogits> forward_top(std::span<const Engine::Input> inputs) override {
    forward(inputs);
    tops_.clear(), top_values_.clear(), top_ids_.clear();
    if (!gives_top) return {};
    const std::size_t rows = logits_.size() / static_cast<std::size_t>(vocab_), each = kTopLogits;
    top_values_.resize(rows * each), top_ids_.resize(rows * each);
    for (std::size_t i = 0; i < rows; ++i) {
      float* values = &top_values_[i * each];
      std::int32_t* ids = &top_ids_[i * each];
      const std::int32_t bad =
          top_logits_reference(&logits_[i * static_cast<std::size_t>(vocab_)], vocab_, values, ids);
      tops_.push_back({{values, each}, {ids, each}, bad});
    }
    return tops_;
  }
  std::span<const float> logits() override {
    ++whole_rows;
    return logits_;
  }
  std::int64_t truncate(int slot, std::int64_t n) override {
    Slot& s = slots_.at(slot);
    EXPECT_LE(n, static_cast<std::int64_t>(s.tokens.size()));
    std::int64_t to = n;
    if (is_recurrent && n != static_cast<std::int64_t>(s.tokens.size())) {
      std::erase_if(s.checkpoints, [&](std::int64_t at) { return at > n; });
      to = s.checkpoints.empty() ? 0 : *s.checkpoints.rbegin();
    }
    s.tokens.resize(to);
    s.hashes.resize(to);
    return n - to;
  }
  void checkpoint(int slot) override { slots_.at(slot).checkpoints.insert(length(slot)); }
  bool recurrent() const override { return is_recurrent; }
  std::int64_t length(int slot) const override {
    return static_cast<std::int64_t>(slots_.at(slot).tokens.size());
  }
  std::int64_t context() const override { return context_; }
  std::int64_t vocab() const override { return vocab_; }
  int slots() const override { return static_cast<int>(slots_.size()); }
  std::int64_t prefill_rows() const override { return 256; }

  Override change;  // may rewrite a row of logits
  bool is_recurrent = false;
  bool gives_top = false;  // as an engine on a device does
  int whole_rows = 0;      // how often logits() was asked for
  int throw_at = 0;        // the forward that fails, from 1; 0: none
  int forwards = 0;
  std::int64_t prefilled = 0;  // tokens that came by prefill

 private:
  struct Slot {
    std::vector<std::int32_t> tokens;
    std::vector<std::uint64_t> hashes;
    std::set<std::int64_t> checkpoints;
  };

  void feed(const Engine::Input& in, bool decode) {
    Slot& s = slots_.at(in.slot);
    if (!decode) {
      EXPECT_EQ(s.tokens.size() % 64, 0u) << "a prompt is cut at multiples of 64 only";
      prefilled += static_cast<std::int64_t>(in.tokens.size());
    }
    for (std::size_t i = 0; i < in.tokens.size(); ++i) {
      const std::uint64_t before = s.hashes.empty() ? 7 : s.hashes.back();
      s.tokens.push_back(in.tokens[i]);
      s.hashes.push_back(hash_step(before, 2 * static_cast<std::uint64_t>(in.tokens[i]) + decode));
      const bool last = i + 1 == in.tokens.size();
      if (in.logits == Engine::Logits::All || (in.logits == Engine::Logits::Last && last))
        add_row(s);
    }
    EXPECT_LE(s.tokens.size(), static_cast<std::size_t>(context_));
  }

  void add_row(const Slot& s) {
    const std::size_t at = logits_.size();
    std::uint64_t h = s.hashes.back();
    for (std::int64_t v = 0; v < vocab_; ++v) {
      h = hash_step(h, static_cast<std::uint64_t>(v));
      logits_.push_back(static_cast<float>(h >> 40) * 0x1p-24f * 12 - 6);
    }
    if (change) change(s.tokens, std::span(logits_).subspan(at));
  }

  std::vector<Slot> slots_;
  std::int64_t context_, vocab_;
  std::vector<float> logits_, top_values_;
  std::vector<std::int32_t> top_ids_;
  std::vector<TopLogits> tops_;
};

// Ids 0..255 are the bytes, 256 is the special token "<eos>", 257 and up are undefined.
constexpr std::int32_t kEos = 256;
inline Tokenizer byte_tokenizer() {
  TokenizerSpec spec;
  spec.vocab.resize(256);
  int next = 256;  // bytes that are no printable character take the letters from U+0100 on
  for (int b = 0; b < 256; ++b) {
    const bool shown = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    const int c = shown ? b : next++;
    std::string& s = spec.vocab[b];
    if (c < 0x80)
      s = {static_cast<char>(c)};
    else
      s = {static_cast<char>(0xc0 | (c >> 6)), static_cast<char>(0x80 | (c & 63))};
  }
  spec.added.push_back({.id = kEos, .text = "<eos>", .special = true});
  return Tokenizer(std::move(spec));
}

}  // namespace nibble
