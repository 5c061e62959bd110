// What `run` and `chat` share: sampling options, the chat template, one answer, and its figures.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "engine/bandwidth.h"
#include "engine/generate.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace nibble::cli {

struct SamplingFlags {  // unset: the checkpoint's value, or the default of sampling_for()
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::int64_t> top_k;
  double presence_penalty = 0;
  std::uint64_t seed = 0;
  std::int64_t max_tokens = 0;
  std::vector<std::string> stop;
};
void add_sampling(CLI::App& cmd, SamplingFlags& flags);
// A request with everything but its prompt.
Request request_for(const SamplingFlags& flags, const GenerationConfig& generation);

struct PromptFlags {
  std::string system;
  std::string think;  // "on", "off" or "" (the template's own default)
  bool raw = false;
};
void add_prompt_flags(CLI::App& cmd, PromptFlags& flags);

// Messages to token ids, by the checkpoint's template.
class ChatFormat {
 public:
  // nullopt: the checkpoint has no template. Throws Error when the template cannot be run.
  static std::optional<ChatFormat> of(const Checkpoint& checkpoint, const Tokenizer& tokenizer,
                                      const PromptFlags& flags);
  // messages: [{"role", "content"}, ...]; ends where the assistant is to speak.
  std::vector<std::int32_t> encode(const nlohmann::ordered_json& messages) const;

 private:
  ChatFormat(ChatTemplate t, const Tokenizer& tokenizer)
      : template_(std::move(t)), tokenizer_(&tokenizer) {}
  ChatTemplate template_;
  const Tokenizer* tokenizer_;
  nlohmann::ordered_json extra_ = nlohmann::ordered_json::object();
};

nlohmann::ordered_json message(std::string_view role, std::string_view content);

// Runs one request to its end. `print` gets its text as it comes (may be empty); when
// `interrupted` (may be empty) turns true the request is cancelled. Rethrows a failure.
Completion answer(Scheduler& scheduler, Request request,
                  const std::function<void(std::string_view)>& print,
                  const std::function<bool()>& interrupted);

// Bytes a decode step read, over the answer's mean.
double bytes_per_token(const Completion& c, const EngineMemory& memory);
// "prompt 34 tokens, 251.0 tok/s; answer 120 tokens, 101.2 tok/s, 9.1 GB/s (32 % of ...)".
std::string describe_speed(const Completion& c, const EngineMemory& memory, const Bandwidth& read);

}  // namespace nibble::cli
