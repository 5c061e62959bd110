#include "answering.h"

#include <charconv>

#include "base/error.h"
#include "console.h"

namespace nibble::cli {
namespace {

constexpr double kTemperature = 0.7, kTopP = 0.95;
constexpr std::int64_t kTopK = 40;

// CLI11 takes -1 and 2^64 for an unsigned number; the text says what was meant. "" when it is one.
std::string whole_number(const std::string& text) {
  std::uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  if (parsed.ec == std::errc{} && parsed.ptr == end) return {};
  return text + " is not a whole number from 0 to 2^64 - 1";
}

}  // namespace

void add_sampling(CLI::App& cmd, SamplingFlags& f) {
  const std::string unset = "; unset: the model's generation_config, else ";
  cmd.add_option("-n,--max-tokens", f.max_tokens,
                 "Most tokens to generate; 0: until the model ends its turn or the context is full")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  cmd.add_option("--temp,--temperature", f.temperature,
                 "0: always the likeliest token" + unset + fmt::format("{}", kTemperature));
  cmd.add_option("--top-k", f.top_k,
                 "Sample from the k likeliest; 0: off" + unset + fmt::format("{}", kTopK));
  cmd.add_option("--top-p", f.top_p,
                 "Sample from the fewest that hold this probability; 1: off" + unset +
                     fmt::format("{}", kTopP));
  cmd.add_option("--min-p", f.min_p,
                 "Drop tokens less likely than this times the best; 0: off" + unset + "0");
  cmd.add_option("--repeat-penalty", f.repetition_penalty,
                 "Divide the logit of tokens in prompt and answer; 1: off" + unset + "1");
  cmd.add_option("--presence-penalty", f.presence_penalty,
                 "Subtract from the logit of tokens in the answer; 0: off")
      ->capture_default_str();
  cmd.add_option("--seed", f.seed, "The same seed gives the same answer, on every machine")
      ->check(whole_number)
      ->capture_default_str();
  cmd.add_option("--stop", f.stop, "End the answer before this text; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
}

Request request_for(const SamplingFlags& f, const GenerationConfig& g) {
  const auto pick = [](const auto& flag, const auto& model, auto otherwise) {
    return flag ? *flag : model.value_or(otherwise);
  };
  Request r;
  r.sampling = {.temperature = pick(f.temperature, g.temperature, kTemperature),
                .top_k = pick(f.top_k, g.top_k, kTopK),
                .top_p = pick(f.top_p, g.top_p, kTopP),
                .min_p = pick(f.min_p, g.min_p, 0.0),
                .repetition_penalty = pick(f.repetition_penalty, g.repetition_penalty, 1.0),
                .presence_penalty = f.presence_penalty,
                .seed = f.seed};
  r.max_tokens = f.max_tokens;
  r.stop = f.stop;
  check(r.sampling);  // refused here, and the next line's too, before the weights are loaded
  StopFilter{r.stop};
  r.stop_ids = g.eos;
  return r;
}

void add_prompt_flags(CLI::App& cmd, PromptFlags& f) {
  cmd.add_option("--system", f.system, "System prompt, for the model's chat template");
  cmd.add_option("--think", f.think, "Let a model that can think first do so, or not")
      ->check(CLI::IsMember({"on", "off"}));
}

std::optional<ChatFormat> ChatFormat::of(const Checkpoint& checkpoint, const Tokenizer& tokenizer,
                                         const PromptFlags& flags) {
  const auto source = checkpoint.chat_template();
  if (!source) return std::nullopt;
  ChatFormat format(ChatTemplate(*source), tokenizer);
  const GenerationConfig& g = checkpoint.generation();
  const auto text = [&](std::int32_t id) {
    return id >= 0 && tokenizer.is_defined(id) ? tokenizer.token_bytes(id) : std::string();
  };
  format.extra_["bos_token"] = text(g.bos);
  format.extra_["eos_token"] = g.eos.empty() ? std::string() : text(g.eos.front());
  if (!flags.think.empty()) format.extra_["enable_thinking"] = flags.think == "on";
  return format;
}

std::vector<std::int32_t> ChatFormat::encode(const nlohmann::ordered_json& messages) const {
  // The template writes the special tokens itself, the first one included.
  return tokenizer_->encode(template_.render(messages, true, extra_), true, false);
}

nlohmann::ordered_json message(std::string_view role, std::string_view content) {
  return {{"role", role}, {"content", content}};
}

Completion answer(Scheduler& scheduler, Request request,
                  const std::function<void(std::string_view)>& print,
                  const std::function<bool()>& interrupted) {
  const Scheduler::Id id = scheduler.submit(std::move(request));
  for (;;) {
    if (interrupted && interrupted()) scheduler.cancel(id);
    for (Scheduler::Event& e : scheduler.step()) {
      if (print && !e.text.empty()) print(e.text);
      if (!e.done) continue;
      if (e.done->error) std::rethrow_exception(e.done->error);
      return std::move(*e.done);
    }
  }
}

double bytes_per_token(const Completion& c, const EngineMemory& memory) {
  const double depth =
      static_cast<double>(c.prompt_tokens) + (static_cast<double>(c.decode_steps) + 1) / 2;
  return static_cast<double>(memory.weights_per_token) +
         2 * static_cast<double>(memory.state_per_step) +
         depth * static_cast<double>(memory.kv_per_position);
}

std::string describe_speed(const Completion& c, const EngineMemory& memory, const Bandwidth& read) {
  const double bytes = bytes_per_token(c, memory) * c.decode_rate();
  return fmt::format(
      "prompt {} tokens, {:.1f} tok/s; answer {} tokens, {:.1f} tok/s, {:.1f} GB/s ({:.0f} % of "
      "the "
      "{:.1f} GB/s this machine reads)",
      c.prompt_tokens, c.prompt_rate(), c.tokens.size(), c.decode_rate(), bytes / 1e9,
      100 * bytes / read.median, read.median / 1e9);
}

}  // namespace nibble::cli
