#include "text/chat_template.h"

#include "base/error.h"
#include "text/jinja/template.h"

namespace nibble {

struct ChatTemplate::Impl {
  jinja::Template parsed;
};

ChatTemplate::ChatTemplate(std::string_view source)
    : impl_(std::make_unique<Impl>(Impl{jinja::Template(source)})) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;

std::string ChatTemplate::render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                                 const nlohmann::ordered_json& extra) const {
  require(messages.is_array(), "chat template: messages must be an array");
  require(extra.is_null() || extra.is_object(),
          "chat template: the template variables must be an object");
  // transformers always defines these two; templates compare them with none.
  nlohmann::ordered_json variables = {{"tools", nullptr}, {"documents", nullptr}};
  if (extra.is_object()) variables.update(extra);
  variables["messages"] = messages;
  variables["add_generation_prompt"] = add_generation_prompt;
  return impl_->parsed.render(variables);
}

}  // namespace nibble
