// Generation: many requests over one engine. Requests join, leave and are cancelled at any step;
// each has its own slot, sampler and stop rules, and gets the same tokens alone and in company.
//
// One step() is one decode of every running sequence, then one chunk of waiting prompts: a long
// prompt never holds up the others by more than a chunk. The two are never mixed in one forward,
// and prompts are cut at multiples of 64 positions only.
//
// A slot remembers what it holds. A new prompt goes to the free slot that shares the longest
// beginning with it, and that part is not computed again: as many positions as were *prefilled*
// (not decoded: the bits would differ from a fresh run), rounded down to a multiple of 64. A model
// with a recurrent state goes on from a checkpoint, one of which is kept where the whole blocks of
// 64 of a prompt end.
//
// Not thread-safe: one thread owns a Scheduler and calls everything.
#pragma once
#include <chrono>
#include <cstdint>
#include <exception>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/sampler.h"
#include "engine/stepper.h"
#include "engine/stop_filter.h"
#include "text/tokenizer.h"

namespace nibble {

struct Request {
  std::vector<std::int32_t> prompt;  // at least one id
  SamplingParams sampling;
  std::int64_t max_tokens = 0;         // 0: until the context is full
  std::vector<std::string> stop;       // strings; never part of the text
  std::vector<std::int32_t> stop_ids;  // every id that ends a turn; never part of the answer
};

enum class Finish { Stop, Length, Cancelled, Failed };
std::string_view finish_name(Finish f);  // "stop", "length", "cancelled", "failed"

struct Completion {
  std::string text;
  std::vector<std::int32_t> tokens;  // generated, without the id that ended the turn
  Finish finish = Finish::Stop;
  std::exception_ptr error;  // Failed only
  std::int64_t prompt_tokens = 0;
  std::int64_t reused_tokens = 0;  // of the prompt, found in the slot
  std::int64_t decode_steps = 0;   // tokens sampled after the first, the ending one included
  double prompt_seconds = 0;       // from joining to the first token
  double decode_seconds = 0;       // from the first token to the last

  // Tokens computed a second; 0 when there were none.
  double prompt_rate() const {
    return prompt_seconds > 0 ? static_cast<double>(prompt_tokens - reused_tokens) / prompt_seconds
                              : 0;
  }
  double decode_rate() const {
    return decode_seconds > 0 ? static_cast<double>(decode_steps) / decode_seconds : 0;
  }
};

class Scheduler {
 public:
  using Id = std::uint64_t;
  struct Event {
    Id id;
    std::string text;                // to be printed now; whole characters
    std::optional<Completion> done;  // set once, on the request's last event
  };

  // Both must outlive it. Nobody else may move the stepper's slots.
  Scheduler(Stepper& stepper, const Tokenizer& tokenizer);
  ~Scheduler();

  // Queues a request; it joins when a slot is free, in order. Throws Error for a prompt that is
  // empty, longer than the context or holds an unknown id, UsageError for bad parameters.
  Id submit(Request request);
  // Ends a request at the next step(), wherever it is; finished or unknown ids are ignored.
  void cancel(Id id);
  // Advances everything by one step. A fault (NaN logits, an engine error) ends the requests it
  // concerns as Failed; the others go on.
  std::vector<Event> step();
  bool idle() const { return sequences_.empty(); }

 private:
  using Clock = std::chrono::steady_clock;
  struct Sequence;
  struct Slot {
    std::vector<std::int32_t> tokens;  // what its cache holds
    std::int64_t prefilled = 0;        // how many of them came by prefill
    std::uint64_t freed_at = 0;
    bool busy = false;
  };
  struct Work {
    Sequence* sequence;
    std::span<const std::int32_t> tokens;
    bool wants_logits;
  };
  void admit();
  void assign_slot(Sequence& s);
  void decode();
  void prefill_chunk();
  void advance(const std::vector<Work>& batch, bool is_prefill);
  void accept(Sequence& s, std::int32_t id);
  void finish(Sequence& s, Finish why, std::exception_ptr error = nullptr);

  Stepper& stepper_;
  const Tokenizer& tokenizer_;
  std::vector<std::int32_t> banned_;  // padding ids of the vocabulary
  std::vector<Slot> slots_;
  std::list<Sequence> sequences_;  // in order of arrival
  Id next_id_ = 1;
  std::uint64_t releases_ = 0;
};

}  // namespace nibble
