#include "engine/perplexity.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"

namespace nibble {

std::vector<std::int32_t> document_ids(std::string_view text, const Tokenizer& tokenizer,
                                       const GenerationConfig& g) {
  require(g.bos >= 0 || !g.eos.empty(), "documents: the model names no token to begin them with");
  const std::int32_t begin = g.bos >= 0 ? g.bos : g.eos.front();
  std::vector<std::int32_t> ids;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    if (end > at) {
      ids.push_back(begin);
      const auto line = tokenizer.encode(text.substr(at, end - at), false, false);
      ids.insert(ids.end(), line.begin(), line.end());
    }
    at = end + 1;
  }
  return ids;
}

double negative_log_likelihood(std::span<const float> logits, std::int32_t target) {
  const double best = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - best);
  return std::log(sum) + (best - logits[target]);
}

Perplexity perplexity(Stepper& stepper, std::span<const std::int32_t> ids,
                      const PerplexityOptions& options) {
  const std::int64_t window = options.window;
  if (window < 4) fail_usage("a window of {} tokens scores nothing: use at least 4", window);
  if (options.windows < 0) fail_usage("{} windows: use 0 for all", options.windows);
  const std::int64_t all = static_cast<std::int64_t>(ids.size()) / window;
  require(all > 0,
          "the text gives {} tokens, fewer than one window of {}: use a longer text or a "
          "smaller --window",
          ids.size(), window);
  const std::int64_t windows = options.windows == 0 ? all : std::min(all, options.windows);
  const std::int64_t first = options.score_all ? 0 : window / 2;

  double sum = 0, squares = 0;
  std::int64_t scored = 0;
  for (std::int64_t w = 0; w < windows; ++w) {
    std::vector<std::int32_t> tokens(ids.begin() + w * window, ids.begin() + (w + 1) * window);
    if (options.bos) tokens[0] = *options.bos;
    prefill(stepper, 0, tokens, first, [&](std::int64_t position, std::span<const float> rows) {
      for (; !rows.empty(); ++position, rows = rows.subspan(stepper.vocab())) {
        if (position + 1 == window) return;  // predicts a token of the next window
        const double x = negative_log_likelihood(rows.first(stepper.vocab()), tokens[position + 1]);
        require(std::isfinite(x),
                "the logits at position {} of window {} are not finite: "
                "--check-finite names the operation",
                position, w);
        sum += x;
        squares += x * x;
        ++scored;
      }
    });
    if (options.progress)
      options.progress(w + 1, windows, std::exp(sum / static_cast<double>(scored)));
  }
  const auto n = static_cast<double>(scored);
  const double mean = sum / n, variance = std::max(squares / n - mean * mean, 0.0);
  Perplexity result{.perplexity = std::exp(mean), .windows = windows, .tokens = scored};
  if (scored > 1) result.standard_error = std::sqrt(variance / (n - 1)) * result.perplexity;
  return result;
}

}  // namespace nibble
