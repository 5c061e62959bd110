// From logits to the next token. Everything here is a fixed sequence of IEEE operations with its
// own generator and its own exp, so a seed gives the same tokens on every machine whose logits
// are the same bits.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace nibble {

// Applied in this order, that of Hugging Face's generate(); each is off at the value given here.
//   repetition  every id of prompt and answer: logit < 0 ? logit * r : logit / r
//   presence    every id of the answer: logit - p
//   temperature logit / t; 0 takes the largest logit, the lowest id on a tie, and stops here
//   top_k       the k largest (lowest ids on a tie); 0: all
//   top_p       the fewest, largest first, whose probabilities among those left reach p
//   min_p       those at least min_p times as probable as the best
struct SamplingParams {
  double temperature = 1;
  std::int64_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  std::uint64_t seed = 0;
};

// The largest logits of a row, as ops/top_logits.h gives them.
struct TopLogits {
  std::span<const float> values;      // [kTopLogits]
  std::span<const std::int32_t> ids;  // -1: the row has no more
  std::int32_t bad = -1;              // an id whose logit is NaN or +Inf
};

// Throws UsageError naming the parameter that is out of range.
void check(const SamplingParams& p);

// The i-th number of the stream `seed`: uniform in [0, 1), a multiple of 2^-53.
double uniform(std::uint64_t seed, std::uint64_t i);

class Sampler {
 public:
  // `banned`: ids of [0, vocab) never sampled (padding of the vocabulary). Throws UsageError for
  // parameters out of range.
  Sampler(const SamplingParams& params, std::int64_t vocab,
          std::span<const std::int32_t> banned = {});
  // The prompt, for the repetition penalty. Ids must be in [0, vocab).
  void accept_prompt(std::span<const std::int32_t> ids);
  // Picks the next token from logits [vocab] and counts it as generated. O(vocab), plus sorting
  // what top_k or top_p leave. Throws Error when a logit is NaN or +Inf.
  std::int32_t sample(std::span<const float> logits);
  // The same from the row's largest logits, where they tell; nothing, and nothing done, where the
  // whole row is needed: sampling from all of them, penalties that raise a logit, many banned ids
  // or penalties among the largest, a logit that sample() throws for.
  std::optional<std::int32_t> sample(const TopLogits& top);
  // Whether it ever can.
  bool takes_top() const;

 private:
  struct Candidate {
    float logit;
    std::int32_t id;
    double weight;  // exp((logit - best) / temperature)
  };
  bool penalises() const;
  float penalised(float logit, std::int32_t id) const;
  std::int64_t wanted() const;    // the largest logits that are drawn from; 0: all
  std::int32_t draw(float best);  // from candidates_
  void accept(std::int32_t id);
  void keep_top_k();
  void keep_top_p();

  SamplingParams params_;
  std::vector<std::int32_t> banned_;    // ascending
  std::vector<std::uint8_t> seen_;      // [vocab] 0 new, 1 in the prompt, 2 generated
  std::vector<std::int32_t> seen_ids_;  // each once
  std::uint64_t draws_ = 0;
  std::vector<float> logits_;          // [vocab] scratch
  std::vector<Candidate> candidates_;  // scratch
};

}  // namespace nibble
