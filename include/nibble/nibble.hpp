// Nibble's public C++ API. Self-contained: includes the standard library only.
// Every failure is thrown as a std::runtime_error whose text names the thing and the remedy.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// The library's version, "major.minor.patch". Static storage.
std::string_view version();

struct LoadOptions {
  std::string device = "cpu";
  std::string activations = "int16";  // "int16", "int8" or "fp32" (docs/design.md)
  int threads = 0;                    // 0: every core this process may use
  std::int64_t context = 0;           // positions; 0: min(the model's maximum, 4096)
  bool exact_prefill = false;         // prompts in `activations` too, where a GPU has fp16 for them
};

struct GenerateOptions {
  std::int64_t max_tokens = 0;  // 0: until the model ends its turn or the context is full
  double temperature = 0;       // 0: always the likeliest token; the rest then has no effect
  std::int64_t top_k = 0;       // 0: off
  double top_p = 1;             // 1: off
  double min_p = 0;             // 0: off
  double repetition_penalty = 1, presence_penalty = 0;
  std::uint64_t seed = 0;  // the same seed gives the same answer
  std::vector<std::string> stop = {};
};

struct Generated {
  std::string text;                  // without the stop string
  std::vector<std::int32_t> tokens;  // without the id that ended the turn
  std::string finish_reason;         // "stop", "length" or "cancelled"
  std::int64_t prompt_tokens = 0;
};

struct ChatMessage {
  std::string role, content;  // "system", "user" or "assistant"
};

// A loaded model that answers one request at a time. Movable; not thread-safe.
class LanguageModel {
 public:
  // path: a Hugging Face directory (plain or pack-quantized) or a GGUF file.
  explicit LanguageModel(const std::string& path, const LoadOptions& options = {});
  ~LanguageModel();
  LanguageModel(LanguageModel&&) noexcept;

  // special: special tokens in the text become their ids.
  std::vector<std::int32_t> encode(std::string_view text, bool special = false) const;
  std::string decode(const std::vector<std::int32_t>& ids) const;
  // Ids of a conversation by the checkpoint's own chat template, ending where the assistant speaks.
  std::vector<std::int32_t> chat_prompt(const std::vector<ChatMessage>& messages) const;

  // on_text gets whole characters as they come and returns false to cancel; it may be empty.
  Generated generate(const std::vector<std::int32_t>& prompt, const GenerateOptions& options = {},
                     const std::function<bool(std::string_view)>& on_text = {});
  // fp32 [ids.size(), vocab()], row-major: the logits after each position, from position 0.
  std::vector<float> logits(const std::vector<std::int32_t>& ids);
  std::int64_t vocab() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
