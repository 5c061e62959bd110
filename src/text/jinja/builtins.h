// Filters, tests, functions and methods, by name.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace nibble::jinja {

class Interp;

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// self: what a filter is applied to, or the object of a method; if a string, the caller has
// counted one reading of it.
using Builtin = Value (*)(Interp& in, const Value& self, const Args& args);
using Test = bool (*)(Interp& in, const Value& v, const Args& args);
struct BuiltinEntry {
  std::string_view name;
  Builtin function;
};

Builtin find_filter(std::string_view name);       // null: there is none
Builtin find_text_filter(std::string_view name);  // (those of filters_text.cc)
Test find_test(std::string_view name);
Builtin find_function(std::string_view name);

struct Method {
  bool exists = false;         // Python has it
  bool mutates = false;        // then the sandbox hides it
  Builtin function = nullptr;  // null: not supported here
};
Method find_method(const Value& object, std::string_view name);
Builtin find_str_method(std::string_view name);

// Arguments by the names of a function's parameters, bound as Python does.
class Params {
 public:
  // Fails on too many, too few, unknown or repeated arguments. `what` names the function. `args`
  // must outlive this.
  Params(Run& run, std::string_view what, const Args& args,
         std::initializer_list<std::string_view> names, std::size_t required = 0);
  const Value* get(std::size_t i) const { return values_[i]; }  // null: not given
  const Value& at(std::size_t i) const { return *values_[i]; }  // of a required one
  // Absent and None give the default where there is one.
  std::int64_t integer(std::size_t i, std::int64_t otherwise) const;
  bool flag(std::size_t i, bool otherwise) const;
  std::string_view text(std::size_t i, std::string_view otherwise) const;
  bool given(std::size_t i) const { return values_[i] != nullptr && !values_[i]->is<None>(); }

 private:
  Run& run_;
  std::string_view what_;
  std::vector<const Value*> values_;
};

// Work on text that methods and filters share (methods.cc).
std::string replace_text(Run& run, std::string_view s, std::string_view from, std::string_view to,
                         std::int64_t count);  // negative: all
std::vector<std::string_view> split_lines(Run& run, std::string_view s, bool keep_ends);
bool is_all_case(std::string_view s, bool upper);  // str.isupper, str.islower

// Value as a string: itself, or printed.
StrPtr as_str(Run& run, const Value& v);

}  // namespace nibble::jinja
