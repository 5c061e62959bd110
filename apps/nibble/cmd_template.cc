// nibble template: a conversation through a chat template.
#include <memory>

#include "base/error.h"
#include "commands.h"
#include "console.h"
#include "text/chat_template.h"

namespace nibble::cli {
namespace {

struct Options {
  std::string file, messages, extra;
  bool no_generation_prompt = false;
};

nlohmann::ordered_json read_json(const std::string& path) {
  try {
    return nlohmann::ordered_json::parse(read_text(path));
  } catch (const nlohmann::json::exception& e) {
    fail("{}: not JSON: {}", path, e.what());
  }
}

void render(const Options& o) {
  const ChatTemplate chat(read_text(o.file));
  const auto messages = read_json(o.messages);
  const auto extra = o.extra.empty() ? nlohmann::ordered_json() : read_json(o.extra);
  out_text(chat.render(messages, !o.no_generation_prompt, extra));
}

}  // namespace

void add_template(CLI::App& app) {
  auto* cmd = app.add_subcommand("template", "Show a conversation as a chat template writes it");
  const auto o = std::make_shared<Options>();
  cmd->add_option("FILE", o->file, "The template (Jinja), as chat_template.jinja of a model")
      ->required();
  cmd->add_option("--messages", o->messages,
                  "JSON: an array of messages, each with role and content; - reads standard input")
      ->required();
  cmd->add_option("--extra", o->extra,
                  "JSON: an object of further variables (tools, bos_token, enable_thinking, ...)");
  cmd->add_flag("--no-generation-prompt", o->no_generation_prompt,
                "Leave out what asks the model to answer");
  cmd->footer(
      "Prints exactly the text that the model would be given, with no newline added.\n\n"
      "  nibble template chat_template.jinja --messages chat.json\n"
      "  echo '[{\"role\": \"user\", \"content\": \"Hi\"}]' | "
      "nibble template chat_template.jinja --messages -");
  cmd->callback([o] { render(*o); });
}

}  // namespace nibble::cli
