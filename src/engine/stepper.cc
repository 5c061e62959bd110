#include "engine/stepper.h"

#include "base/error.h"

namespace nibble {

void prefill(Stepper& stepper, int slot, std::span<const std::int32_t> ids, std::int64_t wanted,
             const LogitSink& sink) {
  const auto total = static_cast<std::int64_t>(ids.size());
  require(total <= stepper.context(),
          "{} tokens do not fit in a context of {}: shorten the input "
          "or raise --context",
          total, stepper.context());
  stepper.truncate(slot, 0);
  for (std::int64_t begin = 0, end; begin < total; begin = end) {
    // Without logits chunks are as long as a step allows, up to the first one that needs them.
    const std::int64_t quiet = std::min(wanted, total) / kPromptGrid * kPromptGrid - begin;
    const bool silent = wanted >= total || quiet > 0;
    const std::int64_t budget =
        silent ? std::min<std::int64_t>(wanted >= total ? total - begin : quiet,
                                        stepper.prefill_rows())
               : logit_rows(stepper.vocab());
    end = chunk_end(begin, total, budget);
    const Engine::Input input{slot, ids.subspan(begin, end - begin),
                              silent ? Engine::Logits::None : Engine::Logits::All};
    const std::span<const float> rows = stepper.forward({&input, 1});
    if (silent) continue;
    const std::int64_t skip = std::max<std::int64_t>(wanted - begin, 0);
    sink(begin + skip, rows.subspan(skip * stepper.vocab()));
  }
}

}  // namespace nibble
