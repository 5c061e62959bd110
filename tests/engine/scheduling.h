// What tests of the scheduler share.
#pragma once
#include <gtest/gtest.h>

#include <map>

#include "engine/generate.h"
#include "fake_stepper.h"

namespace nibble {

inline constexpr std::int64_t kVocab = 260;  // 257, 258, 259: padding

inline const Tokenizer& tokenizer() {
  static const Tokenizer t = byte_tokenizer();
  return t;
}

inline std::vector<std::int32_t> prompt_of(std::size_t n, std::uint64_t salt = 0) {
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < n; ++i)
    ids.push_back(static_cast<std::int32_t>(uniform(salt, i) * 256));
  return ids;
}

inline Request request_of(std::vector<std::int32_t> prompt, std::int64_t max_tokens,
                          std::uint64_t seed = 0) {
  Request r;
  r.prompt = std::move(prompt);
  r.max_tokens = max_tokens;
  r.sampling.seed = seed;
  return r;
}

// Runs until idle and collects every end; checks the events against the completions.
inline std::map<Scheduler::Id, Completion> drain(Scheduler& s) {
  std::map<Scheduler::Id, Completion> done;
  std::map<Scheduler::Id, std::string> text;
  for (int steps = 0; !s.idle(); ++steps) {
    if (steps > 20000) {
      ADD_FAILURE() << "never idle";
      break;
    }
    for (auto& e : s.step()) {
      EXPECT_EQ(done.count(e.id), 0u) << "an event after the end";
      text[e.id] += e.text;
      if (!e.done) continue;
      EXPECT_TRUE(e.done->text.ends_with(text[e.id]));  // all of it, if none came before
      done[e.id] = std::move(*e.done);
    }
  }
  return done;
}

inline Completion alone(const Request& r, std::int64_t context = 2048) {
  FakeStepper fake(1, context, kVocab);
  Scheduler s(fake, tokenizer());
  const auto id = s.submit(r);
  return drain(s).at(id);
}

}  // namespace nibble
