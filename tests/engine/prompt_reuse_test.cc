#include "base/error.h"
#include "scheduling.h"

namespace nibble {
namespace {

// A second turn: the first prompt, what was answered, and more.
std::vector<std::int32_t> next_turn(std::vector<std::int32_t> prompt, const Completion& c) {
  prompt.insert(prompt.end(), c.tokens.begin(), c.tokens.end());
  prompt.insert(prompt.end(), {7, 8, 9});
  return prompt;
}

TEST(Generate, ReusesWhatWasPrefilledAndNothingElse) {
  FakeStepper fake(1, 2048, kVocab);
  Scheduler s(fake, tokenizer());
  const auto first_prompt = prompt_of(150);
  const auto a = s.submit(request_of(first_prompt, 90));
  const Completion first = drain(s).at(a);
  EXPECT_EQ(first.reused_tokens, 0);
  const auto second_prompt = next_turn(first_prompt, first);
  const auto b = s.submit(request_of(second_prompt, 20));
  const Completion second = drain(s).at(b);
  EXPECT_EQ(second.reused_tokens, 128);  // 150 were prefilled, cut at 64; the 90 were decoded
  EXPECT_EQ(second.tokens, alone(request_of(second_prompt, 20)).tokens);
  EXPECT_EQ(fake.prefilled, 150 + static_cast<std::int64_t>(second_prompt.size()) - 128);
}

// A chat with a model whose state cannot be cut: each turn goes on from the checkpoint that the one
// before left at the last whole block of its prompt, and gives the tokens of a fresh run.
TEST(Generate, ARecurrentStateGoesOnFromACheckpoint) {
  FakeStepper fake(1, 2048, kVocab);
  fake.is_recurrent = true;
  Scheduler s(fake, tokenizer());
  std::vector<std::int32_t> history = prompt_of(150);
  std::int64_t kept = 0;
  for (int turn = 0; turn < 4; ++turn) {
    const Request r = request_of(history, 40, static_cast<std::uint64_t>(turn));
    const std::int64_t before = fake.prefilled;
    const auto id = s.submit(r);
    const Completion c = drain(s).at(id);
    EXPECT_EQ(c.reused_tokens, kept) << "turn " << turn;
    EXPECT_EQ(fake.prefilled - before, c.prompt_tokens - kept);
    EXPECT_EQ(c.tokens, alone(r).tokens);
    kept = (c.prompt_tokens - 1) / 64 * 64;
    history.insert(history.end(), c.tokens.begin(), c.tokens.end());
    const auto next = prompt_of(30, 100 + static_cast<std::uint64_t>(turn));
    history.insert(history.end(), next.begin(), next.end());
  }
  // A prompt that departs before every checkpoint starts anew.
  std::vector<std::int32_t> other = prompt_of(150);
  other[70] ^= 1;
  const auto id = s.submit(request_of(other, 5));
  const Completion c = drain(s).at(id);
  EXPECT_EQ(c.reused_tokens, 0);
  EXPECT_EQ(c.tokens, alone(request_of(other, 5)).tokens);
}

TEST(Generate, APromptSeenBeforeStillComputesItsLastPosition) {
  FakeStepper fake(1, 2048, kVocab);
  Scheduler s(fake, tokenizer());
  const Request r = request_of(prompt_of(128), 5);
  const auto a = s.submit(r);
  const auto first = drain(s).at(a);
  const auto b = s.submit(r);
  const auto second = drain(s).at(b);
  EXPECT_EQ(second.reused_tokens, 64);
  EXPECT_EQ(second.tokens, first.tokens);
}

TEST(Generate, APromptGoesToTheSlotThatKnowsIt) {
  FakeStepper fake(3, 2048, kVocab);
  Scheduler s(fake, tokenizer());
  for (int i = 0; i < 3; ++i) s.submit(request_of(prompt_of(200, i), 1));
  drain(s);
  const auto id = s.submit(request_of(prompt_of(200, 1), 1));
  EXPECT_EQ(drain(s).at(id).reused_tokens, 192);
  // An unknown prompt takes the slot unused for longest (0), so that 1 and 2 stay known.
  s.submit(request_of(prompt_of(200, 9), 1));
  drain(s);
  for (const int known : {1, 2}) {
    const auto again = s.submit(request_of(prompt_of(200, known), 1));
    EXPECT_EQ(drain(s).at(again).reused_tokens, 192) << known;
  }
}

}  // namespace
}  // namespace nibble
