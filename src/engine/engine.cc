#include "engine/engine.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>

#include "model/model.h"
#include "model/sequence_state.h"

namespace nibble {
namespace {

constexpr std::int64_t kDefaultContext = 4096;

// Memory a process may still take: what the kernel calls available, or less in a control group.
std::uint64_t available_memory() {
  std::uint64_t available = std::numeric_limits<std::uint64_t>::max();
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key; meminfo >> key;) {
    std::uint64_t kb = 0;
    if (key == "MemAvailable:" && meminfo >> kb) available = kb * 1024;
    meminfo.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  std::uint64_t limit = 0, used = 0;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit &&
      std::ifstream("/sys/fs/cgroup/memory.current") >> used)
    available = std::min(available, limit > used ? limit - used : 0);
  return available;
}

double gb(std::uint64_t bytes) { return static_cast<double>(bytes) / 1e9; }

}  // namespace

struct Engine::Impl {
  EngineOptions options;
  std::int64_t context = 0, vocab = 0;
  bool half = false;  // prompts in fp16
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::unique_ptr<SequenceState> state;
  EngineMemory memory;
  std::vector<std::int32_t> ids, logits_of;
  std::vector<RowPlace> rows;
  Backend::Buffer logits;
  std::size_t logits_rows = 0;
  Backend::Buffer host_logits;
  std::size_t ready = 0;         // rows of logits that the last step left
  bool host_has_logits = false;  // and host_logits has them
  Backend::Buffer top;           // of the host
  std::size_t top_rows = 0;
  std::vector<TopLogits> tops;

  // Where the largest logits of so many rows lie: values, ids, bad.
  TopLogitsArgs top_of(std::size_t n) {
    constexpr auto kEach = static_cast<std::size_t>(kTopLogits);
    if (top_rows < n) {
      top = {};
      top = backend->alloc_host(n * (2 * kEach + 1) * sizeof(float)), top_rows = n;
    }
    TopLogitsArgs a;
    a.values = reinterpret_cast<float*>(top.get());
    a.ids = reinterpret_cast<std::int32_t*>(a.values + n * kEach), a.bad = a.ids + n * kEach;
    return a;
  }
};

Engine::Engine(const Checkpoint& checkpoint, const EngineOptions& options)
    : impl_(std::make_unique<Impl>()) {
  const ModelConfig& c = checkpoint.config();
  if (options.slots < 1 || options.slots > 4096)
    fail_usage("slots: expected 1 to 4096, got {}", options.slots);
  if (options.context < 0 || options.context > c.max_position)
    fail_usage("context: the model holds 1 to {} positions, got {}", c.max_position,
               options.context);
  impl_->options = options;
  impl_->vocab = c.vocab;
  impl_->context =
      options.context > 0 ? options.context : std::min(c.max_position, kDefaultContext);
  const SequenceState::Shape shape = SequenceState::shape(
      c, options.slots, impl_->context,
      options.activations == Activations::Fp32 ? KvType::F32 : KvType::I16, options.checkpoints);
  const KvShape& kv = shape.kv;
  impl_->backend = make_backend(options.device, options.threads);
  impl_->half = options.activations == Activations::Int16 && !options.exact_prefill &&
                impl_->backend->has_half();
  const std::int64_t rows = impl_->backend->prefill_rows(impl_->half);
  const std::uint64_t weights = estimate_weight_bytes(checkpoint),
                      activations = activation_bytes(c, rows),
                      all = weights + shape.bytes() + activations,
                      device = impl_->backend->available_memory(),
                      available = device > 0 ? device : available_memory();
  require(all <= available,
          "not enough memory: weights {:.2f} GB, state {:.2f} GB ({} slots of {} positions) and "
          "activations {:.2f} GB are needed, {:.2f} GB are available; a shorter --context or a "
          "smaller model would fit",
          gb(weights), gb(shape.bytes()), options.slots, impl_->context, gb(activations),
          gb(available));
  impl_->backend->reserve(all);
  impl_->model = Model::load(checkpoint, *impl_->backend, rows, options.progress);
  impl_->state = std::make_unique<SequenceState>(*impl_->backend, shape);
  impl_->memory = {
      .weights = impl_->model->weight_bytes(),
      .weights_per_token = impl_->model->weight_bytes_per_token(),
      .kv_cache = kv.bytes(),
      .kv_per_position = kv.bytes() / static_cast<std::uint64_t>(kv.slots * kv.padded_context()),
      .state = shape.bytes() - kv.bytes(),
      .state_per_step = shape.delta.layers > 0 ? shape.delta.slot_bytes() : 0,
      .scratch = impl_->model->scratch_bytes()};
}
Engine::~Engine() = default;

std::span<const float> Engine::forward(std::span<const Input> inputs) {
  step(inputs);
  return logits();
}

std::span<const float> Engine::logits() {
  Impl& e = *impl_;
  const std::size_t count = e.ready * static_cast<std::size_t>(e.vocab);
  if (count == 0) return {};
  if (e.backend->is_host()) return {reinterpret_cast<const float*>(e.logits.get()), count};
  if (!e.host_has_logits)
    e.backend->download(e.host_logits.get(), e.logits.get(), count * sizeof(float));
  e.host_has_logits = true;
  return {reinterpret_cast<const float*>(e.host_logits.get()), count};
}

std::span<const TopLogits> Engine::forward_top(std::span<const Input> inputs) {
  Impl& e = *impl_;
  const bool wanted = !e.backend->is_host();
  step(inputs, wanted);
  const std::size_t rows = e.ready;
  if (rows == 0 || !wanted) return {};
  e.backend->finish();
  e.tops.clear();
  const TopLogitsArgs top = e.top_of(rows);
  constexpr auto kEach = static_cast<std::size_t>(kTopLogits);
  for (std::size_t i = 0; i < rows; ++i)
    e.tops.push_back({{top.values + i * kEach, kEach}, {top.ids + i * kEach, kEach}, top.bad[i]});
  return e.tops;
}

void Engine::step(std::span<const Input> inputs, bool top) {
  Impl& e = *impl_;
  e.ready = 0, e.host_has_logits = false;
  require(!inputs.empty() && inputs.size() <= kMaxSequences,
          "a step takes 1 to {} sequences, got {}", kMaxSequences, inputs.size());
  e.ids.clear(), e.rows.clear(), e.logits_of.clear();
  std::array<std::int32_t, kMaxSequences> slots{};
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Input& in = inputs[i];
    require(in.slot >= 0 && in.slot < e.options.slots, "slot {} does not exist; the engine has {}",
            in.slot, e.options.slots);
    slots[i] = in.slot;
    require(std::find(slots.begin(), slots.begin() + i, in.slot) == slots.begin() + i,
            "slot {} is given twice in one step", in.slot);
    require(!in.tokens.empty(), "slot {}: no tokens", in.slot);
    require(!in.decode || in.tokens.size() == 1, "slot {}: {} tokens to decode, not one", in.slot,
            in.tokens.size());
    require(in.decode == inputs[0].decode, "a step takes prompts or decodes, not both");
    const std::int64_t start = length(in.slot),
                       end = start + static_cast<std::int64_t>(in.tokens.size());
    require(end <= e.context, "slot {}: position {} is past the context of {}; raise --context",
            in.slot, end, e.context);
    for (std::int64_t p = start; p < end; ++p) {
      const std::int32_t id = in.tokens[static_cast<std::size_t>(p - start)];
      require(id >= 0 && id < e.vocab, "token id {} is outside the vocabulary of {}", id, e.vocab);
      if (in.logits == Logits::All || (in.logits == Logits::Last && p + 1 == end))
        e.logits_of.push_back(static_cast<std::int32_t>(e.ids.size()));
      e.ids.push_back(id);
      e.rows.push_back({in.slot, static_cast<std::int32_t>(p)});
    }
  }
  require(std::ssize(e.ids) <= prefill_rows(), "a step takes at most {} tokens, got {}",
          prefill_rows(), e.ids.size());
  const std::size_t count = e.logits_of.size() * static_cast<std::size_t>(e.vocab);
  if (e.logits_rows < e.logits_of.size()) {
    e.logits = {};
    e.logits = e.backend->alloc(count * sizeof(float));
    if (!e.backend->is_host()) e.host_logits = e.backend->alloc_host(count * sizeof(float));
    e.logits_rows = e.logits_of.size();
  }
  try {
    e.model->forward(
        {.ids = e.ids,
         .rows = e.rows,
         .logits_of = e.logits_of,
         .logits = reinterpret_cast<float*>(e.logits.get()),
         .cache = e.state->cache(),
         .activations = e.half && !inputs[0].decode ? Activations::Half : e.options.activations,
         .check_finite = e.options.check_finite,
         .delta = e.state->delta(),
         .top = top ? e.top_of(e.logits_of.size()) : TopLogitsArgs{}});
  } catch (...) {  // a recurrence has gone on in some layers
    for (const Input& in : inputs) e.state->recover(in.slot);
    throw;
  }
  for (const Input& in : inputs)
    e.state->advance(in.slot, static_cast<std::int64_t>(in.tokens.size()));
  e.ready = e.logits_of.size();
}

std::int64_t Engine::truncate(int slot, std::int64_t n) {
  require(slot >= 0 && slot < slots() && n >= 0 && n <= length(slot),
          "cannot cut slot {} to {} positions", slot, n);
  return impl_->state->truncate(slot, n);
}
void Engine::reset(int slot) { truncate(slot, 0); }
void Engine::checkpoint(int slot) { impl_->state->checkpoint(slot); }
void Engine::copy(int from, int to) { impl_->state->copy(from, to); }
bool Engine::recurrent() const { return impl_->state->recurrent(); }
std::int64_t Engine::length(int slot) const { return impl_->state->length(slot); }
std::int64_t Engine::context() const { return impl_->context; }
std::int64_t Engine::vocab() const { return impl_->vocab; }
int Engine::slots() const { return impl_->options.slots; }
std::int64_t Engine::prefill_rows() const { return impl_->backend->prefill_rows(impl_->half); }
int Engine::threads() const { return impl_->backend->threads(); }
double Engine::read_bandwidth() const { return impl_->backend->read_bandwidth(); }
EngineMemory Engine::memory() const {
  EngineMemory m = impl_->memory;
  m.scratch += impl_->logits_rows * static_cast<std::uint64_t>(impl_->vocab) * sizeof(float);
  m.operations = impl_->backend->scratch_memory();
  return m;
}
std::string Engine::describe() const {
  return fmt::format("{}, {} activations{}", impl_->backend->describe(),
                     activations_name(impl_->options.activations),
                     impl_->half ? ", prompts in fp16" : "");
}

}  // namespace nibble
