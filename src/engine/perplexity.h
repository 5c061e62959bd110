// Perplexity of a text by the rule of llama.cpp's llama-perplexity, so that figures compare:
// non-overlapping windows, each from an empty state; in a window of W the tokens W/2 + 1 .. W - 1
// are scored, each from the logits of the position before it; a rest shorter than W is dropped.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "checkpoint/config.h"
#include "engine/stepper.h"
#include "text/tokenizer.h"

namespace nibble {

struct PerplexityOptions {
  std::int64_t window = 512;        // at least 4
  std::int64_t windows = 0;         // 0: all that fit
  std::optional<std::int32_t> bos;  // replaces the first token of every window
  bool score_all = false;           // every token of a window but the first, not its second half
  // Called after each window with windows done, windows in all and the perplexity so far.
  std::function<void(std::int64_t, std::int64_t, double)> progress;
};

struct Perplexity {
  double perplexity = 0;
  double standard_error = 0;  // of the perplexity, from the spread of the tokens' log-likelihoods
  std::int64_t windows = 0;
  std::int64_t tokens = 0;  // scored
};

// Ids of a text whose lines are documents: the model's BOS, or else its first EOS, and a line, for
// every line that is not empty. Error when the model has neither token.
std::vector<std::int32_t> document_ids(std::string_view text, const Tokenizer& tokenizer,
                                       const GenerationConfig& generation);

// -log softmax(logits)[target], in double.
double negative_log_likelihood(std::span<const float> logits, std::int32_t target);

// Uses slot 0. Throws Error when the text is shorter than a window, a window does not fit in the
// context, or a logit is not finite; UsageError for impossible options.
Perplexity perplexity(Stepper& stepper, std::span<const std::int32_t> ids,
                      const PerplexityOptions& options);

}  // namespace nibble
