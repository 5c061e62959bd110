#include "text/jinja/template.h"

#include "text/jinja/interp.h"
#include "text/jinja/parser.h"

namespace nibble::jinja {

Template::Template(std::string_view source) {
  require(source.size() <= kMaxSource, "chat template: {} bytes; at most {} are supported",
          source.size(), kMaxSource);
  body_ = parse(source);
}

std::string Template::render(const nlohmann::ordered_json& variables, const Limits& limits) const {
  Run run(limits);
  Scope globals;
  for (const auto& [name, value] : variables.items()) {
    globals.names[name] = from_json(run, value);
  }
  Interp interp(run);
  Scope scope{&globals, {}};
  Output out(run);
  interp.exec(body_, scope, out);
  return out.take();
}

}  // namespace nibble::jinja
