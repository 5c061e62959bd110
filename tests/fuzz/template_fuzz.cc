// Any bytes as a chat template, over a fixed conversation with tools: an Error or a text.
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "text/jinja/template.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using Json = nlohmann::ordered_json;
  static const Json variables = Json::parse(R"({
    "messages": [
      {"role": "system", "content": "Be brief. é日本👍"},
      {"role": "user", "content": [{"type": "text", "text": "Hi <b>\n\n there"}]},
      {"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "\nwhy\n",
       "tool_calls": [{"id": "1", "type": "function",
                       "function": {"name": "f", "arguments": {"x": 1.5, "y": [null, true, -7]}}}]},
      {"role": "tool", "name": "f", "tool_call_id": "1", "content": "{\"a\": 1}"},
      {"role": "user", "content": "  a,b,,c  "}],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d",
      "parameters": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}}}],
    "documents": null, "add_generation_prompt": true, "enable_thinking": false,
    "bos_token": "<s>", "eos_token": "</s>"})");
  nibble::jinja::Limits limits;
  limits.steps = 20'000;
  limits.memory = 2 << 20;
  try {
    const std::string_view source(reinterpret_cast<const char*>(data), size);
    nibble::jinja::Template(source).render(variables, limits);
  } catch (const nibble::Error&) {
  }
  return 0;
}
