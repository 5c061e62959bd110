// A parsed template, and how to render it.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "text/jinja/ast.h"
#include "text/jinja/run.h"

namespace nibble::jinja {

// The environment is that of Hugging Face's transformers: a sandbox, trim_blocks and
// lstrip_blocks on, auto-escaping off, loop controls, raise_exception, strftime_now, their tojson.
class Template {
 public:
  static constexpr std::size_t kMaxSource = 1 << 20;

  // Throws Error with the line and what is malformed or not supported.
  explicit Template(std::string_view source);

  // `variables`: an object. Thread-safe. Throws Error with the line.
  std::string render(const nlohmann::ordered_json& variables, const Limits& limits = {}) const;

 private:
  Body body_;
};

}  // namespace nibble::jinja
