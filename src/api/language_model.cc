#include "base/error.h"
#include "engine/generate.h"
#include "nibble/nibble.hpp"
#include "text/chat_template.h"

namespace nibble {
namespace {

EngineOptions engine_options(const LoadOptions& o) {
  for (const Activations a : {Activations::Int16, Activations::Int8, Activations::Fp32})
    if (o.activations == activations_name(a))
      return {.activations = a,
              .device = o.device,
              .threads = o.threads,
              .context = o.context,
              .exact_prefill = o.exact_prefill};
  fail_usage("activations: expected int16, int8 or fp32, got '{}'", o.activations);
}

}  // namespace

struct LanguageModel::Impl {
  Impl(const std::string& path, const LoadOptions& options)
      : checkpoint(Checkpoint::open(path)),
        engine(*checkpoint, engine_options(options)),
        stepper(engine) {
    if (auto spec = checkpoint->tokenizer()) tokenizer.emplace(std::move(*spec));
    if (tokenizer) scheduler.emplace(stepper, *tokenizer);
    if (const auto t = checkpoint->chat_template()) chat.emplace(*t);
  }
  const Tokenizer& text() const {
    require(tokenizer.has_value(),
            "this checkpoint has no tokenizer: use logits(), or add its tokenizer.json");
    return *tokenizer;
  }

  std::unique_ptr<Checkpoint> checkpoint;
  Engine engine;
  EngineStepper stepper;
  std::optional<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat;
  std::optional<Scheduler> scheduler;
};

LanguageModel::LanguageModel(const std::string& path, const LoadOptions& options)
    : impl_(std::make_unique<Impl>(path, options)) {}
LanguageModel::~LanguageModel() = default;
LanguageModel::LanguageModel(LanguageModel&&) noexcept = default;

std::vector<std::int32_t> LanguageModel::encode(std::string_view text, bool special) const {
  return impl_->text().encode(text, special, true);
}
std::string LanguageModel::decode(const std::vector<std::int32_t>& ids) const {
  return impl_->text().decode(ids, true);
}
std::int64_t LanguageModel::vocab() const { return impl_->engine.vocab(); }

std::vector<std::int32_t> LanguageModel::chat_prompt(
    const std::vector<ChatMessage>& messages) const {
  require(impl_->chat.has_value(), "this checkpoint has no chat template: use encode()");
  const Tokenizer& t = impl_->text();
  auto json = nlohmann::ordered_json::array();
  for (const ChatMessage& m : messages) json.push_back({{"role", m.role}, {"content", m.content}});
  const GenerationConfig& g = impl_->checkpoint->generation();
  const auto name = [&](std::int32_t id) {
    return t.is_defined(id) ? t.token_bytes(id) : std::string();
  };
  const nlohmann::ordered_json extra = {
      {"bos_token", name(g.bos)},
      {"eos_token", g.eos.empty() ? std::string() : name(g.eos.front())}};
  return t.encode(impl_->chat->render(json, true, extra), true, false);
}

Generated LanguageModel::generate(const std::vector<std::int32_t>& prompt, const GenerateOptions& o,
                                  const std::function<bool(std::string_view)>& on_text) {
  impl_->text();
  Scheduler& scheduler = *impl_->scheduler;
  const Scheduler::Id id =
      scheduler.submit({.prompt = prompt,
                        .sampling = {o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty,
                                     o.presence_penalty, o.seed},
                        .max_tokens = o.max_tokens,
                        .stop = o.stop,
                        .stop_ids = impl_->checkpoint->generation().eos});
  for (;;)
    for (Scheduler::Event& e : scheduler.step()) {
      if (on_text && !e.text.empty() && !on_text(e.text)) scheduler.cancel(id);
      if (!e.done) continue;
      if (e.done->error) std::rethrow_exception(e.done->error);
      return {std::move(e.done->text), std::move(e.done->tokens),
              std::string(finish_name(e.done->finish)), e.done->prompt_tokens};
    }
}

std::vector<float> LanguageModel::logits(const std::vector<std::int32_t>& ids) {
  std::vector<float> all;
  all.reserve(ids.size() * static_cast<std::size_t>(vocab()));
  // A slot that the scheduler does not know to have changed would be reused wrongly.
  impl_->scheduler.reset();
  prefill(impl_->stepper, 0, ids, 0, [&](std::int64_t, std::span<const float> rows) {
    all.insert(all.end(), rows.begin(), rows.end());
  });
  if (impl_->tokenizer) impl_->scheduler.emplace(impl_->stepper, *impl_->tokenizer);
  impl_->engine.reset(0);
  return all;
}

}  // namespace nibble
