#include "engine/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <limits>
#include <map>

#include "base/error.h"
#include "scheduling.h"

namespace nibble {
namespace {

// Makes the model say `text` after its prompt of `n` tokens, then <eos>.
FakeStepper::Override says(std::size_t n, std::string text) {
  return [n, text](const std::vector<std::int32_t>& history, std::span<float> row) {
    const std::size_t at = history.size() - n;
    row[at < text.size() ? static_cast<unsigned char>(text[at]) : kEos] = 1000;
  };
}

Completion said(const std::string& text, const std::vector<std::string>& stop,
                bool stop_at_eos = true) {
  FakeStepper fake(1, 2048, kVocab);
  fake.change = says(3, text);
  Scheduler s(fake, tokenizer());
  Request r = request_of({1, 2, 3}, 200);
  r.stop = stop;
  if (stop_at_eos) r.stop_ids = {kEos};
  const auto id = s.submit(r);
  return drain(s).at(id);
}

TEST(Generate, EndsAtAStopIdAndKeepsItOut) {
  const Completion c = said("hello", {});
  EXPECT_EQ(c.text, "hello");
  EXPECT_THAT(c.tokens, testing::ElementsAre('h', 'e', 'l', 'l', 'o'));
  EXPECT_EQ(c.finish, Finish::Stop);
  EXPECT_EQ(c.prompt_tokens, 3);
  EXPECT_EQ(c.decode_steps, 5);
}

TEST(Generate, EndsBeforeAStopString) {
  const Completion c = said("one two three", {"zzz", "two"});
  EXPECT_EQ(c.text, "one ");
  EXPECT_EQ(c.finish, Finish::Stop);
  EXPECT_EQ(said("one tw", {"two"}).text, "one tw");  // the held part comes at the end
}

TEST(Generate, StreamsWholeCharactersOnly) {
  FakeStepper fake(1, 2048, kVocab);
  fake.change = says(1, "\xc3\xa9\xf0\x9f\x98\x80\xff!\xe2\x82");
  Scheduler s(fake, tokenizer());
  Request r = request_of({1}, 0);
  r.stop_ids = {kEos};
  s.submit(r);
  std::vector<std::string> pieces;
  std::string all;
  while (!s.idle())
    for (const auto& e : s.step()) {
      if (!e.text.empty()) pieces.push_back(e.text);
      if (e.done) all = e.done->text;
    }
  ASSERT_EQ(pieces.size(), 5u) << testing::PrintToString(pieces);
  EXPECT_EQ(pieces[0], "\xc3\xa9");
  EXPECT_EQ(pieces[1], "\xf0\x9f\x98\x80");
  EXPECT_EQ(pieces[3], "!");
  EXPECT_EQ(all, pieces[0] + pieces[1] + pieces[2] + pieces[3] + pieces[4]);
  EXPECT_EQ(pieces[4], "\xef\xbf\xbd");  // U+FFFD for what was cut
}

TEST(Generate, EndsAtTheLimitOrWhenTheContextIsFull) {
  const Completion limited = alone(request_of(prompt_of(10), 7));
  EXPECT_EQ(limited.finish, Finish::Length);
  EXPECT_EQ(limited.tokens.size(), 7u);
  // 100 positions: 90 tokens can be fed after the prompt, and the last one needs no room.
  const Completion full = alone(request_of(prompt_of(10), 0), 100);
  EXPECT_EQ(full.finish, Finish::Length);
  EXPECT_EQ(full.tokens.size(), 91u);
  EXPECT_EQ(alone(request_of(prompt_of(100), 0), 100).tokens.size(), 1u);
}

TEST(Generate, RefusesImpossibleRequests) {
  FakeStepper fake(1, 100, kVocab);
  Scheduler s(fake, tokenizer());
  EXPECT_THROW(s.submit(request_of({}, 1)), Error);
  EXPECT_THROW(s.submit(request_of(prompt_of(101), 1)), Error);
  EXPECT_THROW(s.submit(request_of({0, 260}, 1)), Error);
  EXPECT_THROW(s.submit(request_of({-1}, 1)), Error);
  EXPECT_THROW(s.submit(request_of({1}, -1)), UsageError);
  Request r = request_of({1}, 1);
  r.sampling.top_p = 2;
  EXPECT_THROW(s.submit(r), UsageError);
  r = request_of({1}, 1);
  r.stop = {""};
  EXPECT_THROW(s.submit(r), UsageError);
  EXPECT_TRUE(s.idle());
  EXPECT_TRUE(s.step().empty());
}

TEST(Generate, PaddingIdsAreNeverSampled) {
  FakeStepper fake(1, 2048, kVocab);
  fake.change = [](const auto&, std::span<float> row) { row[257] = row[258] = row[259] = 100; };
  Scheduler s(fake, tokenizer());
  const auto id = s.submit(request_of({1}, 50));
  EXPECT_THAT(drain(s).at(id).tokens, testing::Each(testing::Le(kEos)));
}

TEST(Generate, ALongPromptDoesNotHoldUpOthers) {
  FakeStepper fake(2, 4096, kVocab);
  Scheduler s(fake, tokenizer());
  const auto quick = s.submit(request_of(prompt_of(5), 100));
  s.step();
  s.submit(request_of(prompt_of(3000, 1), 1));
  s.step();
  const int before = fake.forwards;
  for (int i = 0; i < 8; ++i) s.step();
  EXPECT_LE(fake.forwards, before + 2 * 8);
  s.cancel(quick);
  const auto done = drain(s);
  // Ten steps: a token in each, though the long prompt took a chunk in nine of them.
  EXPECT_EQ(done.at(quick).tokens.size(), 10u);
}

TEST(Generate, MoreRequestsThanSlotsWaitInOrder) {
  FakeStepper fake(2, 2048, kVocab);
  Scheduler s(fake, tokenizer());
  std::vector<Request> requests;
  std::vector<Scheduler::Id> ids;
  for (int i = 0; i < 7; ++i) {
    requests.push_back(request_of(prompt_of(20 + 70 * i, i), 5 + i, i));
    ids.push_back(s.submit(requests.back()));
  }
  const auto done = drain(s);
  for (int i = 0; i < 7; ++i) EXPECT_EQ(done.at(ids[i]).tokens, alone(requests[i]).tokens) << i;
}

TEST(Generate, MoreSlotsThanAStepTakes) {
  FakeStepper fake(11, 512, kVocab);
  Scheduler s(fake, tokenizer());
  std::vector<Scheduler::Id> ids;
  for (int i = 0; i < 11; ++i) ids.push_back(s.submit(request_of(prompt_of(6, i), 9, i)));
  // Two steps take in 8 and 3 prompts; from then on every sequence decodes in every step.
  std::map<Scheduler::Id, Completion> done;
  for (int step = 0; step < 10; ++step)
    for (auto& e : s.step())
      if (e.done) done[e.id] = std::move(*e.done);
  EXPECT_TRUE(s.idle());
  for (int i = 0; i < 11; ++i)
    EXPECT_EQ(done[ids[i]].tokens, alone(request_of(prompt_of(6, i), 9, i)).tokens) << i;
}

TEST(Generate, CancelEndsARequestWhereverItIs) {
  FakeStepper fake(1, 2048, kVocab);
  Scheduler s(fake, tokenizer());
  const auto running = s.submit(request_of(prompt_of(4), 100));
  const auto waiting = s.submit(request_of(prompt_of(4), 100));
  s.step();
  s.step();
  s.cancel(waiting);
  s.cancel(12345);
  auto events = s.step();
  bool seen = false;
  for (const auto& e : events)
    if (e.id == waiting)
      seen = e.done && e.done->finish == Finish::Cancelled && e.done->tokens.empty();
  EXPECT_TRUE(seen);
  s.cancel(running);
  const auto done = drain(s);
  EXPECT_EQ(done.at(running).finish, Finish::Cancelled);
  EXPECT_EQ(done.at(running).tokens.size(), 3u);
}

TEST(Generate, NanEndsItsOwnRequestOnly) {
  FakeStepper fake(2, 2048, kVocab);
  const auto poisoned = prompt_of(70, 1);
  fake.change = [&](const std::vector<std::int32_t>& history, std::span<float> row) {
    if (history.size() == 75 && std::equal(poisoned.begin(), poisoned.end(), history.begin()))
      row[3] = std::numeric_limits<float>::quiet_NaN();
  };
  Scheduler s(fake, tokenizer());
  const auto bad = s.submit(request_of(poisoned, 20));
  const auto good = s.submit(request_of(prompt_of(70, 2), 20));
  const auto done = drain(s);
  EXPECT_EQ(done.at(bad).finish, Finish::Failed);
  EXPECT_THROW(std::rethrow_exception(done.at(bad).error), Error);
  EXPECT_EQ(done.at(good).tokens, alone(request_of(prompt_of(70, 2), 20)).tokens);
  // What the failed request left behind is not reused.
  fake.change = nullptr;
  const auto again = s.submit(request_of(poisoned, 2));
  EXPECT_EQ(drain(s).at(again).reused_tokens, 0);
}

TEST(Generate, AnEngineErrorEndsTheRequestsOfThatForward) {
  FakeStepper fake(2, 2048, kVocab);
  fake.throw_at = 4;
  Scheduler s(fake, tokenizer());
  const auto a = s.submit(request_of(prompt_of(10, 1), 20));
  const auto b = s.submit(request_of(prompt_of(10, 2), 20));
  const auto done = drain(s);
  for (const auto id : {a, b}) {
    EXPECT_EQ(done.at(id).finish, Finish::Failed);
    EXPECT_THROW(std::rethrow_exception(done.at(id).error), std::runtime_error);
  }
  const auto c = s.submit(request_of(prompt_of(10, 1), 20));
  EXPECT_EQ(drain(s).at(c).tokens, alone(request_of(prompt_of(10, 1), 20)).tokens);
}

// Rows of logits stay on a device while the samplers can do with the largest.
TEST(Generate, AsksForWholeRowsOnlyWhereNeeded) {
  const auto run = [](bool gives_top, std::int64_t top_k, double temperature, int& whole_rows) {
    FakeStepper fake(2, 2048, kVocab);
    fake.gives_top = gives_top;
    Scheduler s(fake, tokenizer());
    std::vector<Scheduler::Id> ids;
    for (std::uint64_t i = 0; i < 2; ++i) {
      Request r = request_of(prompt_of(70, i), 30);
      r.sampling.temperature = temperature, r.sampling.top_k = top_k;
      ids.push_back(s.submit(r));
    }
    const auto done = drain(s);
    whole_rows = fake.whole_rows;
    return std::pair(done.at(ids[0]).tokens, done.at(ids[1]).tokens);
  };
  int whole = 0, few = 0;
  for (const auto& [top_k, temperature] : {std::pair<std::int64_t, double>{0, 0}, {20, 0.8}}) {
    EXPECT_EQ(run(false, top_k, temperature, whole), run(true, top_k, temperature, few));
    EXPECT_EQ(whole, 60);
    EXPECT_EQ(few, 0);
  }
  EXPECT_EQ(run(false, 0, 0.8, whole), run(true, 0, 0.8, few));
  EXPECT_EQ(few, 60);
}

TEST(Generate, FinishNames) {
  EXPECT_EQ(finish_name(Finish::Stop), "stop");
  EXPECT_EQ(finish_name(Finish::Length), "length");
  EXPECT_EQ(finish_name(Finish::Cancelled), "cancelled");
}

// The promise: whoever joins, leaves or is cancelled, a request's tokens are those it gets alone.
RC_GTEST_PROP(GenerateProperty, CompanyDoesNotMatter, ()) {
  const int slots = *rc::gen::inRange(1, 10);
  FakeStepper fake(slots, 1024, kVocab);
  fake.gives_top = *rc::gen::arbitrary<bool>();
  Scheduler s(fake, tokenizer());
  std::map<Scheduler::Id, Request> requests;
  std::map<Scheduler::Id, Completion> done;
  const auto step = [&] {
    for (auto& e : s.step())
      if (e.done) done[e.id] = std::move(*e.done);
  };
  for (int i = 0; i < 25; ++i) {
    if (*rc::gen::inRange(0, 3) > 0) {
      // Few salts, so that prompts share beginnings and slots are reused.
      std::size_t n = *rc::gen::inRange<std::size_t>(2, 700);
      if (n % 64 == 1) ++n;  // the fake takes an input of one token for a decode
      Request r = request_of(prompt_of(n, *rc::gen::inRange(0, 2)), *rc::gen::inRange(1, 30), i);
      r.sampling.top_k = *rc::gen::element(0, 5);
      r.sampling.repetition_penalty = *rc::gen::element(1.0, 1.3);
      r.stop_ids = {kEos, 65};
      r.stop = {"B"};
      requests.emplace(s.submit(r), r);
    }
    for (int k = *rc::gen::inRange(0, 4); k > 0; --k) step();
    if (!requests.empty() && *rc::gen::inRange(0, 6) == 0)
      s.cancel(*rc::gen::inRange<Scheduler::Id>(1, requests.size() + 1));
  }
  while (!s.idle()) step();
  for (const auto& [id, request] : requests) {
    const Completion expected = alone(request, 1024);
    const Completion& got = done.at(id);
    if (got.finish == Finish::Cancelled) {
      RC_ASSERT(got.tokens.size() <= expected.tokens.size());
      RC_ASSERT(std::equal(got.tokens.begin(), got.tokens.end(), expected.tokens.begin()));
    } else {
      RC_ASSERT(got.tokens == expected.tokens);
      RC_ASSERT(got.text == expected.text);
      RC_ASSERT(got.finish == expected.finish);
    }
  }
}

}  // namespace
}  // namespace nibble
