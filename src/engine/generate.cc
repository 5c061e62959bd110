#include "engine/generate.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace nibble {

struct Scheduler::Sequence {
  Id id;
  Request request;
  Sampler sampler;
  Detokenizer detokenizer;
  StopFilter filter;
  int slot = -1;  // -1: waiting for one
  bool cancelled = false, finished = false;
  Clock::time_point joined, first_token;
  std::string pending;  // text for this step's event
  Completion result;

  bool decoding() const { return !finished && !result.tokens.empty(); }
};

std::string_view finish_name(Finish f) {
  constexpr std::string_view names[] = {"stop", "length", "cancelled", "failed"};
  return names[static_cast<int>(f)];
}

// How much of a prompt a later one may find done: blocks of 64, and never its last position.
static std::int64_t whole_blocks(std::int64_t prompt) {
  return (prompt - 1) / kPromptGrid * kPromptGrid;
}

Scheduler::Scheduler(Stepper& stepper, const Tokenizer& tokenizer)
    : stepper_(stepper), tokenizer_(tokenizer), slots_(stepper.slots()) {
  for (std::int64_t id = 0; id < stepper.vocab(); ++id)
    if (!tokenizer.is_defined(static_cast<std::int32_t>(id)))
      banned_.push_back(static_cast<std::int32_t>(id));
}

Scheduler::~Scheduler() = default;

Scheduler::Id Scheduler::submit(Request request) {
  const auto n = static_cast<std::int64_t>(request.prompt.size());
  require(n > 0, "the prompt is empty: it gives no token to start from");
  require(n <= stepper_.context(),
          "the prompt has {} tokens and the context holds {}: shorten it or "
          "raise --context",
          n, stepper_.context());
  for (const std::int32_t id : request.prompt)
    require(id >= 0 && id < stepper_.vocab(), "token {} is outside the model's vocabulary of {}",
            id, stepper_.vocab());
  if (request.max_tokens < 0)
    fail_usage("max_tokens is {}; it must be 0 (no limit) or more", request.max_tokens);
  Sampler sampler(request.sampling, stepper_.vocab(), banned_);
  sampler.accept_prompt(request.prompt);
  StopFilter filter(request.stop);
  Sequence& s = sequences_.emplace_back(Sequence{.id = next_id_,
                                                 .request = std::move(request),
                                                 .sampler = std::move(sampler),
                                                 .detokenizer = Detokenizer(tokenizer_),
                                                 .filter = std::move(filter),
                                                 .joined = {},
                                                 .first_token = {},
                                                 .pending = {},
                                                 .result = {}});
  s.result.prompt_tokens = n;
  return next_id_++;
}

void Scheduler::cancel(Id id) {
  for (Sequence& s : sequences_)
    if (s.id == id) s.cancelled = true;
}

std::vector<Scheduler::Event> Scheduler::step() {
  for (Sequence& s : sequences_)
    if (s.cancelled) finish(s, Finish::Cancelled);
  admit();
  decode();
  prefill_chunk();

  std::vector<Event> events;
  for (auto it = sequences_.begin(); it != sequences_.end();) {
    Sequence& s = *it;
    if (!s.pending.empty() || s.finished) {
      s.result.text += s.pending;
      Event& e = events.emplace_back(Event{s.id, std::exchange(s.pending, {}), {}});
      if (s.finished) e.done = std::move(s.result);
    }
    it = s.finished ? sequences_.erase(it) : std::next(it);
  }
  return events;
}

void Scheduler::admit() {
  auto free = std::count_if(slots_.begin(), slots_.end(), [](const Slot& s) { return !s.busy; });
  for (Sequence& s : sequences_) {
    if (free == 0) return;
    if (s.slot >= 0 || s.finished) continue;
    assign_slot(s);
    --free;
  }
}

// The free slot that shares most with the prompt; of equals the one longest unused.
void Scheduler::assign_slot(Sequence& s) {
  const std::vector<std::int32_t>& prompt = s.request.prompt;
  std::int64_t best_keep = -1;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.busy) continue;
    const auto differ =
        std::mismatch(prompt.begin(), prompt.end(), slot.tokens.begin(), slot.tokens.end());
    // At least the last position is computed: its logits are needed.
    const std::int64_t common = std::min({static_cast<std::int64_t>(differ.first - prompt.begin()),
                                          slot.prefilled, s.result.prompt_tokens - 1});
    const std::int64_t keep = common / kPromptGrid * kPromptGrid;
    if (keep > best_keep || (keep == best_keep && slot.freed_at < slots_[s.slot].freed_at)) {
      best_keep = keep;
      s.slot = static_cast<int>(i);
    }
  }
  Slot& slot = slots_[s.slot];
  slot.busy = true;
  best_keep -= stepper_.truncate(s.slot, best_keep);  // back to a checkpoint of a recurrent state
  slot.tokens.resize(best_keep);
  slot.prefilled = best_keep;
  s.result.reused_tokens = best_keep;
  s.joined = Clock::now();
}

void Scheduler::decode() {
  std::vector<Work> batch;
  for (Sequence& s : sequences_)
    if (s.decoding()) batch.push_back({&s, std::span(s.result.tokens).last(1), true});
  for (std::size_t i = 0; i < batch.size(); i += Engine::kMaxSequences) {
    const std::size_t n = std::min<std::size_t>(batch.size() - i, Engine::kMaxSequences);
    advance({batch.begin() + static_cast<long>(i), batch.begin() + static_cast<long>(i + n)},
            false);
  }
}

void Scheduler::prefill_chunk() {
  std::vector<Work> batch;
  std::int64_t budget = stepper_.prefill_rows();
  for (Sequence& s : sequences_) {
    if (s.slot < 0 || s.finished || s.decoding() || batch.size() == Engine::kMaxSequences) continue;
    const auto begin = static_cast<std::int64_t>(slots_[s.slot].tokens.size());
    const std::int64_t whole = whole_blocks(s.result.prompt_tokens);
    const std::int64_t stop =
        stepper_.recurrent() && begin < whole ? whole : s.result.prompt_tokens;
    const std::int64_t end = chunk_end(begin, stop, budget);
    if (end == begin) continue;
    const auto tokens = std::span(s.request.prompt).subspan(begin, end - begin);
    batch.push_back({&s, tokens, end == s.result.prompt_tokens});
    budget -= end - begin;
  }
  if (!batch.empty()) advance(batch, true);
}

void Scheduler::advance(const std::vector<Work>& batch, bool is_prefill) {
  std::vector<Engine::Input> inputs;
  for (const Work& w : batch)
    inputs.push_back({w.sequence->slot, w.tokens,
                      w.wants_logits ? Engine::Logits::Last : Engine::Logits::None, !is_prefill});
  const bool few = std::all_of(batch.begin(), batch.end(), [](const Work& w) {
    return !w.wants_logits || w.sequence->sampler.takes_top();
  });
  std::span<const TopLogits> tops;
  try {
    if (few)
      tops = stepper_.forward_top(inputs);
    else
      stepper_.forward(inputs);
  } catch (...) {
    for (const Work& w : batch) finish(*w.sequence, Finish::Failed, std::current_exception());
    return;
  }
  std::size_t row = 0;
  const auto sample = [&](Sampler& sampler) {
    const std::size_t of = row++;
    if (!tops.empty())
      if (const auto id = sampler.sample(tops[of])) return *id;
    const auto vocab = static_cast<std::size_t>(stepper_.vocab());
    return sampler.sample(stepper_.logits().subspan(of * vocab, vocab));
  };
  for (const Work& w : batch) {
    Slot& slot = slots_[w.sequence->slot];
    slot.tokens.insert(slot.tokens.end(), w.tokens.begin(), w.tokens.end());
    if (is_prefill) {
      slot.prefilled = static_cast<std::int64_t>(slot.tokens.size());
      if (slot.prefilled == whole_blocks(w.sequence->result.prompt_tokens))
        stepper_.checkpoint(w.sequence->slot);
    }
    if (!w.wants_logits) continue;
    try {
      accept(*w.sequence, sample(w.sequence->sampler));
    } catch (...) {
      finish(*w.sequence, Finish::Failed, std::current_exception());
    }
  }
}

// Takes the next token of `s` and decides whether it was the last.
void Scheduler::accept(Sequence& s, std::int32_t id) {
  const auto now = Clock::now();
  const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  if (s.result.tokens.empty()) {
    s.first_token = now;
    s.result.prompt_seconds = seconds(now - s.joined);
  } else {
    s.result.decode_steps += 1;
    s.result.decode_seconds = seconds(now - s.first_token);
  }
  if (std::find(s.request.stop_ids.begin(), s.request.stop_ids.end(), id) !=
      s.request.stop_ids.end())
    return finish(s, Finish::Stop);
  s.result.tokens.push_back(id);
  s.pending += s.filter.push(s.detokenizer.push(id));
  if (s.filter.stopped()) return finish(s, Finish::Stop);
  const auto made = static_cast<std::int64_t>(s.result.tokens.size());
  const bool full = s.result.prompt_tokens + made > stepper_.context();  // no room to feed `id`
  if (full || made == s.request.max_tokens) finish(s, Finish::Length);
}

void Scheduler::finish(Sequence& s, Finish why, std::exception_ptr error) {
  if (s.finished) return;
  if (!s.filter.stopped()) s.pending += s.filter.push(s.detokenizer.flush()) + s.filter.flush();
  s.finished = true;
  s.result.finish = why;
  s.result.error = std::move(error);
  if (s.slot < 0) return;
  Slot& slot = slots_[s.slot];
  slot.busy = false;
  slot.freed_at = ++releases_;
  if (why == Finish::Failed) {  // its cache cannot be trusted
    slot.tokens.clear();
    slot.prefilled = 0;
  }
}

}  // namespace nibble
