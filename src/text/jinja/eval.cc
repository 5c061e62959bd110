// Expressions.
#include <algorithm>

#include "text/jinja/interp.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace nibble::jinja {

using Op = Expr::Op;

namespace {

// "'x' is undefined": names come from hostile templates too, so they are shown shortened.
std::string shown(std::string_view name) {
  const std::size_t cut = byte_of_char(name.substr(0, 240), 60);
  return fmt::format("{}{}", name.substr(0, cut), cut < name.size() ? "..." : "");
}

}  // namespace

Value Interp::eval(const Expr& e, Scope& scope) {
  const Run::Nest nest(run);
  run.step();
  run.line = e.line;
  switch (e.op) {
    case Op::Const:
      return e.value;
    case Op::Name:
      return lookup(e.name, scope);
    case Op::Tuple:
    case Op::List:
    case Op::Dict:
      return eval_container(e, scope);
    case Op::Attr: {
      const Value object = eval(*e.kids[0], scope);
      run.line = e.line;
      return attribute(object, e.name);
    }
    case Op::Item: {
      const Value object = eval(*e.kids[0], scope);
      const Value key = eval(*e.kids[1], scope);
      run.line = e.line;
      return item(object, key);
    }
    case Op::Slice:
      return eval_slice(e, scope);
    case Op::Call:
      return eval_call(e, scope);
    case Op::Filter: {
      const Value v = eval(*e.kids[0], scope);
      const Args args = arguments(e, scope);
      run.line = e.line;
      return filter(e.name, v, args);
    }
    case Op::Test: {
      const Value v = eval(*e.kids[0], scope);
      const Args args = arguments(e, scope);
      run.line = e.line;
      return test(e.name, v, args);
    }
    case Op::Not:
      return !truthy(eval(*e.kids[0], scope));
    case Op::Neg:
      return negate(run, eval(*e.kids[0], scope));
    case Op::Pos: {
      Value v = eval(*e.kids[0], scope);
      if (!v.number()) run.fail("'+' cannot take '{}'", type_name(v));
      return v.integer() ? Value(v.as_int()) : v;
    }
    case Op::And:
    case Op::Or: {
      Value left = eval(*e.kids[0], scope);
      return truthy(left) == (e.op == Op::And) ? eval(*e.kids[1], scope) : left;
    }
    case Op::Cond: {
      if (truthy(eval(*e.kids[0], scope))) return eval(*e.kids[1], scope);
      if (e.kids[2] != nullptr) return eval(*e.kids[2], scope);
      return make_undefined(run, "an inline if was false and has no else");
    }
    case Op::Concat:
      return eval_concat(e, scope);
    case Op::Compare:
      return eval_compare(e, scope);
    default: {
      const Value left = eval(*e.kids[0], scope);
      const Value right = eval(*e.kids[1], scope);
      run.line = e.line;
      return binary(run, e.op, left, right);
    }
  }
}

Value Interp::lookup(const std::string& name, Scope& scope) {
  for (Scope* s = &scope; s != nullptr; s = s->parent) {
    run.step();
    if (const auto found = s->names.find(name); found != s->names.end()) return found->second;
  }
  if (const Builtin function = find_function(name)) {
    return std::make_shared<const Callable>(Callable{name, function, {}, nullptr, nullptr});
  }
  return make_undefined(run, fmt::format("'{}' is undefined", shown(name)));
}

Value Interp::eval_container(const Expr& e, Scope& scope) {
  std::vector<Value> items;
  items.reserve(e.kids.size());
  for (const auto& kid : e.kids) items.push_back(eval(*kid, scope));
  run.line = e.line;
  if (e.op != Op::Dict) {
    return make_seq(run, e.op == Op::List ? Seq::Type::List : Seq::Type::Tuple, std::move(items));
  }
  std::vector<std::pair<Value, Value>> pairs;
  for (std::size_t i = 0; i < items.size(); i += 2) {
    pairs.emplace_back(std::move(items[i]), std::move(items[i + 1]));
  }
  return make_dict(run, std::move(pairs));
}

Value Interp::eval_slice(const Expr& e, Scope& scope) {
  const Value v = eval(*e.kids[0], scope);
  Value bounds[3] = {None{}, None{}, None{}};
  for (std::size_t i = 0; i < 3; ++i) {
    if (e.kids[i + 1] != nullptr) bounds[i] = eval(*e.kids[i + 1], scope);
  }
  run.line = e.line;
  return slice(run, v, bounds[0], bounds[1], bounds[2]);
}

Value Interp::eval_concat(const Expr& e, Scope& scope) {
  std::string out;
  for (const auto& kid : e.kids) {
    const Value v = eval(*kid, scope);
    run.line = e.line;
    run.append(out, v.str() != nullptr ? v.str()->text : to_text(run, v));
  }
  return make_str(run, std::move(out));
}

Value Interp::eval_compare(const Expr& e, Scope& scope) {
  Value left = eval(*e.kids[0], scope);
  for (std::size_t i = 0; i < e.keywords.size(); ++i) {
    Value right = eval(*e.kids[i + 1], scope);
    run.line = e.line;
    const std::string& op = e.keywords[i];
    bool holds = false;
    if (op == "==")
      holds = equal(run, left, right);
    else if (op == "!=")
      holds = !equal(run, left, right);
    else if (op == "in")
      holds = contains(run, right, left);
    else if (op == "not in")
      holds = !contains(run, right, left);
    else if (op == "<")
      holds = compare(run, left, right) < 0;
    else if (op == "<=")
      holds = compare(run, left, right) <= 0;
    else if (op == ">")
      holds = compare(run, left, right) > 0;
    else
      holds = compare(run, left, right) >= 0;
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Value Interp::eval_call(const Expr& e, Scope& scope) {
  const Value callee = eval(*e.kids[0], scope);
  const Args args = arguments(e, scope);
  run.line = e.line;
  return call(callee, args);
}

Args Interp::arguments(const Expr& e, Scope& scope) {
  Args args;
  const std::size_t first_named = e.kids.size() - e.keywords.size();
  for (std::size_t i = 1; i < e.kids.size(); ++i) {
    Value v = eval(*e.kids[i], scope);
    const std::string* name = i < first_named ? nullptr : &e.keywords[i - first_named];
    if (name == nullptr) {
      args.positional.push_back(std::move(v));
    } else if (*name == "*") {
      const SeqPtr all = elements(run, v);
      args.positional.insert(args.positional.end(), all->items.begin(), all->items.end());
    } else if (*name == "**") {
      if (v.dict() == nullptr) run.fail("'**' needs a dict, not {}", type_name(v));
      for (const auto& [key, value] : v.dict()->items) {
        if (key.str() == nullptr) run.fail("'**' needs strings for keys");
        args.named.emplace_back(key.str()->text, value);
      }
    } else {
      args.named.emplace_back(*name, std::move(v));
    }
  }
  run.step(args.positional.size() + args.named.size());
  return args;
}

Value Interp::call(const Value& callee, const Args& args) {
  if (callee.undefined()) run.fail("{}", callee.get<Undefined>()->why->text);
  if (callee.is<LoopPtr>()) run.fail("recursive loops are not supported");
  const auto* f = callee.get<CallablePtr>();
  if (f == nullptr) run.fail("a value of type '{}' cannot be called", type_name(callee));
  const Callable& c = **f;
  if (c.macro != nullptr) return call_macro(c, args);
  if (c.function == nullptr) {
    run.fail("the method '{}' of '{}' is not supported", c.name, type_name(c.self));
  }
  if (c.self.str() != nullptr) run.read(c.self.str()->text.size());
  return c.function(*this, c.self, args);
}

Value Interp::filter(std::string_view name, const Value& v, const Args& args) {
  const Builtin f = find_filter(name);
  if (f == nullptr) run.fail("the filter '{}' is not supported", shown(name));
  const Run::Nest nest(run);  // map and select call filters and tests
  if (v.str() != nullptr) run.read(v.str()->text.size());
  return f(*this, v, args);
}

bool Interp::test(std::string_view name, const Value& v, const Args& args) {
  const Test t = find_test(name);
  if (t == nullptr) run.fail("the test '{}' is not supported", shown(name));
  if (v.str() != nullptr) run.read(v.str()->text.size());
  return t(*this, v, args);
}

// What Python's getattr gives; nothing if it raises AttributeError.
std::optional<Value> Interp::plain_attribute(const Value& object, std::string_view name) {
  if (const auto* ns = object.get<NamespacePtr>()) {
    const auto found = (*ns)->attributes.find(std::string(name));
    if (found != (*ns)->attributes.end() && !name.starts_with('_')) return found->second;
    return std::nullopt;
  }
  if (const auto* loop = object.get<LoopPtr>()) {
    Loop& l = **loop;
    if (name == "index") return l.index0 + 1;
    if (name == "index0") return l.index0;
    if (name == "first") return l.index0 == 0;
    if (name == "last") return !l.peek();
    if (name == "length") return l.length(run);
    if (name == "revindex") return l.length(run) - l.index0;
    if (name == "revindex0") return l.length(run) - l.index0 - 1;
    if (name == "depth") return 1;
    if (name == "depth0") return 0;
    if (name == "previtem") {
      return l.index0 > 0 ? l.previous : make_undefined(run, "there is no previous item");
    }
    if (name == "nextitem") {
      return l.peek() ? *l.ahead : make_undefined(run, "there is no next item");
    }
  }
  if (name.starts_with("__")) {
    return make_undefined(run, fmt::format("access to attribute '{}' is unsafe", shown(name)));
  }
  const Method m = find_method(object, name);
  if (!m.exists) return std::nullopt;
  if (m.mutates) {
    return make_undefined(run, fmt::format("'{}' of '{}' would change it, which the sandbox "
                                           "refuses",
                                           name, type_name(object)));
  }
  return std::make_shared<const Callable>(
      Callable{std::string(name), m.function, object, nullptr, nullptr});
}

Value Interp::attribute(const Value& object, std::string_view name) {
  if (object.undefined()) run.fail("{}", object.get<Undefined>()->why->text);
  if (std::optional<Value> v = plain_attribute(object, name)) return std::move(*v);
  if (object.dict() != nullptr) {
    if (const Value* v = object.dict()->find(name)) return *v;
  }
  return make_undefined(
      run, fmt::format("'{} object' has no attribute '{}'", type_name(object), shown(name)));
}

Value Interp::item(const Value& object, const Value& key) {
  if (object.undefined()) run.fail("{}", object.get<Undefined>()->why->text);
  if (const Dict* d = object.dict(); d != nullptr && hashable(key)) {
    if (const Value* v = find(run, *d, key)) return *v;
  }
  const bool indexed = object.str() != nullptr ||
                       (object.seq() != nullptr && object.seq()->type <= Seq::Type::Range);
  if (indexed && key.integer()) {
    const std::int64_t n = length(run, object);
    const std::int64_t i = key.as_int() < 0 ? key.as_int() + n : key.as_int();
    if (i >= 0 && i < n) {
      const auto at = static_cast<std::size_t>(i);
      if (object.seq() != nullptr) return object.seq()->items[at];
      const Str& s = *object.str();
      if (!s.ascii) run.read(s.text.size());
      const std::size_t byte = s.ascii ? at : byte_of_char(s.text, at);
      return make_str(run, s.text.substr(byte, char_at(s.text, byte).bytes), s.markup);
    }
  }
  if (const Str* name = key.str()) {
    if (std::optional<Value> v = plain_attribute(object, name->text)) return std::move(*v);
  }
  std::string text;
  if (key.number() || key.str() != nullptr) text = shown(to_text(run, key));
  return make_undefined(run, fmt::format("'{} object' has no item '{}'", type_name(object), text));
}

}  // namespace nibble::jinja
