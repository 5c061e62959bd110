// Chat templates: the checkpoint's own Jinja template, run by a small interpreter.
#pragma once
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace nibble {

class ChatTemplate {
 public:
  // Parses; Error with line and the feature that is lacking or malformed.
  explicit ChatTemplate(std::string_view source);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;

  // messages: [{"role": ..., "content": ...}, ...] as in the OpenAI API. extra: further template
  // variables (tools, enable_thinking, bos_token, eos_token, date_string, ...). Error on
  // raise_exception or a run-time fault, with line; bounded in steps, depth and output size.
  std::string render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                     const nlohmann::ordered_json& extra = {}) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
