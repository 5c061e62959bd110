// Runs a syntax tree.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/builtins.h"
#include "text/jinja/value.h"

namespace nibble::jinja {

struct Scope {
  Scope* parent = nullptr;  // outlives this
  std::map<std::string, Value, std::less<>> names;
};

// A macro, a function, or a method of `self`. A macro cannot leave the scope it was defined in.
struct Callable {
  std::string name;
  Builtin function = nullptr;  // null: a macro, or a method that is not supported
  Value self;
  const Stmt* macro = nullptr;  // Macro, Call or Generation
  Scope* scope = nullptr;
};

// The elements of a for loop, read one at a time so that its filter sees what the body changed.
struct Loop {
  SeqPtr all;
  std::function<bool(const Value&)> filter;  // may be empty
  std::size_t next = 0;                      // place in all
  std::int64_t index0 = -1;
  Value previous, current;
  std::optional<Value> ahead;  // read, not yet current
  std::optional<Value> changed;

  bool peek();     // reads into ahead; false at the end
  bool advance();  // false at the end
  std::int64_t length(Run& run);
};

// Text being written, counted against the run.
class Output {
 public:
  explicit Output(Run& run) : run_(run) {}
  ~Output() { run_.drop(text_.size()); }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  void write(std::string_view s) {
    run_.work(s.size());
    run_.hold(s.size());
    text_ += s;
  }
  std::string take() {
    run_.drop(text_.size());
    return std::exchange(text_, {});
  }

 private:
  Run& run_;
  std::string text_;
};

class Interp {
 public:
  explicit Interp(Run& r) : run(r) {}
  enum class Flow { Normal, Break, Continue };

  Flow exec(const Body& body, Scope& scope, Output& out);
  Value eval(const Expr& e, Scope& scope);

  Value call(const Value& callee, const Args& args);
  Value filter(std::string_view name, const Value& v, const Args& args);
  bool test(std::string_view name, const Value& v, const Args& args);
  Value attribute(const Value& object, std::string_view name);  // object.name
  Value item(const Value& object, const Value& key);            // object[key]

  Run& run;

 private:
  Flow exec_one(const Stmt& s, Scope& scope, Output& out);
  Flow exec_for(const Stmt& s, Scope& scope, Output& out);
  Flow exec_captured(const Stmt& s, Scope& scope, Output& out);
  void exec_call(const Stmt& s, Scope& scope, Output& out);
  void assign(const Expr& target, Value v, Scope& scope);
  Value call_macro(const Callable& macro, const Args& args);
  Value lookup(const std::string& name, Scope& scope);
  Value eval_container(const Expr& e, Scope& scope);
  Value eval_compare(const Expr& e, Scope& scope);
  Value eval_call(const Expr& e, Scope& scope);
  Value eval_slice(const Expr& e, Scope& scope);
  Value eval_concat(const Expr& e, Scope& scope);
  Value apply_filters(const Expr* e, Value v, Scope& scope);  // e: a chain without a target
  Args arguments(const Expr& e, Scope& scope);
  std::optional<Value> plain_attribute(const Value& object, std::string_view name);
};

// Arithmetic (ops.cc). Fails with the types where Python would, and where 64 bits are too few.
Value binary(Run& run, Expr::Op op, const Value& a, const Value& b);
Value negate(Run& run, const Value& v);
// v[start:stop:step]; None: absent.
Value slice(Run& run, const Value& v, const Value& start, const Value& stop, const Value& step);

}  // namespace nibble::jinja
