// Statements, loops and macros.
#include "text/jinja/interp.h"
#include "text/jinja/print.h"

namespace nibble::jinja {

using Flow = Interp::Flow;
using Kind = Stmt::Kind;

bool Loop::peek() {
  while (!ahead.has_value() && next < all->items.size()) {
    const Value& v = all->items[next++];
    if (!filter || filter(v)) ahead = v;
  }
  return ahead.has_value();
}

bool Loop::advance() {
  if (!peek()) return false;
  previous = std::exchange(current, *std::exchange(ahead, std::nullopt));
  ++index0;
  return true;
}

std::int64_t Loop::length(Run& run) {
  if (filter) {  // what is left must be read to be counted
    std::vector<Value> rest;
    std::optional<Value> first = std::exchange(ahead, std::nullopt);
    while (peek()) rest.push_back(*std::exchange(ahead, std::nullopt));
    ahead = std::move(first);
    filter = nullptr;
    // The elements before stay counted: their places hold anything.
    const std::size_t read = static_cast<std::size_t>(index0) + 1 + (ahead.has_value() ? 1 : 0);
    rest.insert(rest.begin(), read, Value(None{}));
    next = read;
    all = *make_list(run, std::move(rest)).get<SeqPtr>();
  }
  return static_cast<std::int64_t>(all->items.size());
}

Flow Interp::exec(const Body& body, Scope& scope, Output& out) {
  const Run::Nest nest(run);
  for (const auto& s : body) {
    run.step();
    run.line = s->line;
    if (const Flow flow = exec_one(*s, scope, out); flow != Flow::Normal) return flow;
  }
  return Flow::Normal;
}

Flow Interp::exec_one(const Stmt& s, Scope& scope, Output& out) {
  switch (s.kind) {
    case Kind::Data:
      out.write(s.text);
      break;
    case Kind::Print: {
      const Value v = eval(*s.expr, scope);
      run.line = s.line;
      if (v.str() != nullptr)
        out.write(v.str()->text);
      else
        out.write(to_text(run, v));
      break;
    }
    case Kind::If: {
      std::size_t i = 0;
      while (i < s.tests.size() && !truthy(eval(*s.tests[i], scope))) ++i;
      return i < s.bodies.size() ? exec(s.bodies[i], scope, out) : Flow::Normal;
    }
    case Kind::For:
      return exec_for(s, scope, out);
    case Kind::Set:
      assign(*s.target, eval(*s.expr, scope), scope);
      break;
    case Kind::SetBlock:
    case Kind::FilterBlock:
    case Kind::With:
      return exec_captured(s, scope, out);
    case Kind::Macro:
      scope.names[s.text] =
          std::make_shared<const Callable>(Callable{s.text, nullptr, {}, &s, &scope});
      break;
    case Kind::Call:
    case Kind::Generation:
      exec_call(s, scope, out);
      break;
    case Kind::Break:
      return Flow::Break;
    case Kind::Continue:
      return Flow::Continue;
  }
  return Flow::Normal;
}

Flow Interp::exec_for(const Stmt& s, Scope& scope, Output& out) {
  const auto loop = std::make_shared<Loop>();
  loop->all = elements(run, eval(*s.expr, scope));
  if (s.filter != nullptr) {
    loop->filter = [&](const Value& v) {
      Scope inner{&scope, {}};
      assign(*s.target, v, inner);
      return truthy(eval(*s.filter, inner));
    };
  }
  bool completed = false;  // some iteration: Jinja runs the else even after one that was left
  while (loop->advance()) {
    Scope inner{&scope, {}};
    run.line = s.line;
    inner.names["loop"] = loop;
    assign(*s.target, loop->current, inner);
    const Flow flow = exec(s.bodies[0], inner, out);
    completed |= flow == Flow::Normal;
    if (flow == Flow::Break) break;
  }
  loop->filter = nullptr;  // it refers to this scope
  return completed ? Flow::Normal : exec(s.bodies[1], scope, out);
}

// Blocks whose text goes elsewhere than to `out`, or whose names are their own.
Flow Interp::exec_captured(const Stmt& s, Scope& scope, Output& out) {
  Scope inner{&scope, {}};
  if (s.kind == Kind::With) {
    for (const auto& p : s.params) inner.names[p.name] = eval(*p.value, scope);
    return exec(s.bodies[0], inner, out);
  }
  Output text(run);
  if (const Flow flow = exec(s.bodies[0], inner, text); flow != Flow::Normal) return flow;
  Value v = apply_filters(s.expr.get(), make_str(run, text.take()), scope);
  if (s.kind == Kind::SetBlock)
    assign(*s.target, std::move(v), scope);
  else
    out.write(to_text(run, v));
  return Flow::Normal;
}

Value Interp::apply_filters(const Expr* e, Value v, Scope& scope) {
  if (e == nullptr) return v;
  const Run::Nest nest(run);
  v = apply_filters(e->kids[0].get(), std::move(v), scope);
  const Args args = arguments(*e, scope);
  run.line = e->line;
  return filter(e->name, v, args);
}

void Interp::exec_call(const Stmt& s, Scope& scope, Output& out) {
  const Value body = std::make_shared<const Callable>(Callable{"caller", nullptr, {}, &s, &scope});
  if (s.kind == Kind::Generation) return out.write(to_text(run, call(body, {})));
  const Value callee = eval(*s.expr->kids[0], scope);
  Args args = arguments(*s.expr, scope);
  args.named.emplace_back("caller", body);
  run.line = s.line;
  out.write(to_text(run, call(callee, args)));
}

void Interp::assign(const Expr& target, Value v, Scope& scope) {
  run.line = target.line;
  if (target.op == Expr::Op::Name) {
    scope.names[target.name] = std::move(v);
  } else if (target.op == Expr::Op::Attr) {
    const Value object = eval(*target.kids[0], scope);
    const auto* ns = object.get<NamespacePtr>();
    if (ns == nullptr) {
      run.fail("cannot set '{}' of '{}': only of a namespace", target.name, type_name(object));
    }
    require_data(run, v);
    const auto [place, added] = (*ns)->attributes.insert_or_assign(target.name, std::move(v));
    if (added) (*ns)->held.more(128 + target.name.size());
  } else {
    const SeqPtr all = elements(run, v);
    if (all->items.size() != target.kids.size()) {
      run.fail("{} values for {} names", all->items.size(), target.kids.size());
    }
    for (std::size_t i = 0; i < target.kids.size(); ++i) {
      assign(*target.kids[i], all->items[i], scope);
    }
  }
}

Value Interp::call_macro(const Callable& macro, const Args& args) {
  const Run::Nest nest(run);
  const Stmt& s = *macro.macro;
  Scope scope{macro.scope, {}};
  const int line = run.line;
  const auto given = [&](std::string_view name) -> const Value* {
    run.step(args.named.size());
    for (const auto& [n, v] : args.named) {
      if (n == name) return &v;
    }
    return nullptr;
  };
  for (std::size_t i = 0; i < s.params.size(); ++i) {
    const auto& p = s.params[i];
    const Value* named = given(p.name);
    if (i < args.positional.size()) {
      if (named != nullptr) run.fail("'{}' got two values for '{}'", macro.name, p.name);
      scope.names[p.name] = args.positional[i];
    } else if (named != nullptr) {
      scope.names[p.name] = *named;
    } else if (p.value != nullptr) {
      scope.names[p.name] = eval(*p.value, scope);
      run.line = line;
    } else {
      scope.names[p.name] =
          make_undefined(run, fmt::format("parameter '{}' was not provided", p.name));
    }
  }
  std::vector<Value> more;
  for (std::size_t i = s.params.size(); i < args.positional.size(); ++i) {
    more.push_back(args.positional[i]);
  }
  if (!more.empty() && !s.takes_varargs) {
    run.fail("macro '{}' takes {} arguments, not {}", macro.name, s.params.size(),
             args.positional.size());
  }
  std::vector<std::pair<Value, Value>> named;
  for (const auto& [name, v] : args.named) {
    run.step(s.params.size());
    bool known = false;
    for (const auto& p : s.params) known |= p.name == name;
    if (known) continue;
    if (name == "caller")
      scope.names["caller"] = v;
    else if (s.takes_kwargs)
      named.emplace_back(make_str(run, name), v);
    else
      run.fail("macro '{}' has no parameter '{}'", macro.name, name);
  }
  if (s.takes_varargs) {
    scope.names["varargs"] = make_seq(run, Seq::Type::Tuple, std::move(more));
  }
  if (s.takes_kwargs) scope.names["kwargs"] = make_dict(run, std::move(named));
  Output out(run);
  exec(s.bodies[0], scope, out);
  return make_str(run, out.take());
}

}  // namespace nibble::jinja
