// Values as text, byte for byte as Python prints them.
#pragma once
#include <string>
#include <string_view>

#include "text/jinja/value.h"

namespace nibble::jinja {

std::string to_text(Run& run, const Value& v);                 // str(v)
void append_repr(Run& run, std::string& out, const Value& v);  // repr(v)
std::string float_text(double d);                              // repr of a float
std::string escape_html(Run& run, std::string_view s);         // as markupsafe does

struct JsonStyle {
  std::string item_separator = ", ", key_separator = ": ";
  std::string indent;  // of one level
  bool lines = false;  // one element a line
  bool ascii = false;  // \u escapes beyond ASCII
  bool sort_keys = false;
};
// json.dumps(v); fails for what JSON cannot say.
void append_json(Run& run, std::string& out, const Value& v, const JsonStyle& style, int level = 0);

// format % args, with the conversions s r d i u f x and their flags; args: a tuple, a dict for
// %(name)s, or one value.
std::string percent_format(Run& run, std::string_view format, const Value& args);

}  // namespace nibble::jinja
