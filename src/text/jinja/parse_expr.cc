// Expressions, by recursive descent; one function a level of precedence.
#include <algorithm>

#include "text/jinja/parser.h"

namespace nibble::jinja {

using Op = Expr::Op;
using Type = Token::Type;

ExprPtr ExprParser::node(Op op, int line) const {
  auto e = std::make_unique<Expr>();
  e->op = op;
  e->line = line;
  return e;
}

void ExprParser::add(Expr& parent, ExprPtr kid) const {
  if (kid != nullptr) parent.depth = std::max(parent.depth, kid->depth + 1);
  if (parent.depth > kMaxDepth) fail("an expression of more than {} nested parts", kMaxDepth);
  parent.kids.push_back(std::move(kid));
}

ExprPtr ExprParser::binary(Op op, int line, ExprPtr left, ExprPtr right) const {
  auto e = node(op, line);
  add(*e, std::move(left));
  add(*e, std::move(right));
  return e;
}

ExprPtr ExprParser::expression() {
  const Nest nest(*this);
  ExprPtr e = or_expression();
  while (is_word("if")) {
    auto cond = node(Op::Cond, peek().line);
    take();
    ExprPtr test = or_expression();
    ExprPtr otherwise = skip_word("else") ? expression() : nullptr;
    add(*cond, std::move(test));
    add(*cond, std::move(e));
    add(*cond, std::move(otherwise));
    e = std::move(cond);
  }
  return e;
}

ExprPtr ExprParser::or_expression() {
  ExprPtr e = and_expression();
  while (is_word("or")) {
    const int line = take().line;
    e = binary(Op::Or, line, std::move(e), and_expression());
  }
  return e;
}

ExprPtr ExprParser::and_expression() {
  ExprPtr e = not_expression();
  while (is_word("and")) {
    const int line = take().line;
    e = binary(Op::And, line, std::move(e), not_expression());
  }
  return e;
}

ExprPtr ExprParser::not_expression() {
  if (!is_word("not")) return comparison();
  const Nest nest(*this);
  auto e = node(Op::Not, take().line);
  add(*e, not_expression());
  return e;
}

ExprPtr ExprParser::comparison() {
  ExprPtr left = sum();
  ExprPtr e;
  while (true) {
    std::string op;
    if (is(Type::Op)) {
      static constexpr std::string_view ops[] = {"==", "!=", "<", "<=", ">", ">="};
      if (std::find(std::begin(ops), std::end(ops), peek().text) != std::end(ops)) {
        op = take().text;
      }
    } else if (skip_word("in")) {
      op = "in";
    } else if (is_word("not") && is_word("in", 1)) {
      take();
      take();
      op = "not in";
    }
    if (op.empty()) return e != nullptr ? std::move(e) : std::move(left);
    if (e == nullptr) {
      e = node(Op::Compare, peek().line);
      add(*e, std::move(left));
    }
    add(*e, sum());
    e->keywords.push_back(std::move(op));
  }
}

ExprPtr ExprParser::sum() {
  ExprPtr e = concat();
  while (is_op("+") || is_op("-")) {
    const Op op = is_op("+") ? Op::Add : Op::Sub;
    const int line = take().line;
    e = binary(op, line, std::move(e), concat());
  }
  return e;
}

ExprPtr ExprParser::concat() {
  ExprPtr e = product();
  if (!is_op("~")) return e;
  auto all = node(Op::Concat, peek().line);
  add(*all, std::move(e));
  while (skip_op("~")) add(*all, product());
  return all;
}

ExprPtr ExprParser::product() {
  ExprPtr e = power();
  while (true) {
    Op op;
    if (is_op("*"))
      op = Op::Mul;
    else if (is_op("/"))
      op = Op::Div;
    else if (is_op("//"))
      op = Op::FloorDiv;
    else if (is_op("%"))
      op = Op::Mod;
    else
      return e;
    const int line = take().line;
    e = binary(op, line, std::move(e), power());
  }
}

ExprPtr ExprParser::power() {
  ExprPtr e = unary();
  while (is_op("**")) {
    const int line = take().line;
    e = binary(Op::Pow, line, std::move(e), unary());
  }
  return e;
}

ExprPtr ExprParser::unary(bool with_filter) {
  const Nest nest(*this);
  ExprPtr e;
  if (is_op("-") || is_op("+")) {
    e = node(is_op("-") ? Op::Neg : Op::Pos, peek().line);
    take();
    add(*e, unary(false));
  } else {
    e = primary();
  }
  e = postfix(std::move(e));
  while (with_filter) {  // filters bind tighter than operators, looser than `.` and `[]`
    if (is_op("|"))
      e = filters(std::move(e));
    else if (is_word("is"))
      e = test(std::move(e));
    else if (is_op("("))
      e = postfix(std::move(e));
    else
      break;
  }
  return e;
}

ExprPtr ExprParser::primary() {
  const int line = peek().line;
  auto e = node(Op::Const, line);
  if (is(Type::Name)) {
    e->name = take().text;
    const std::string& n = e->name;
    if (n == "true" || n == "True" || n == "false" || n == "False") {
      e->value = n == "true" || n == "True";
    } else if (n == "none" || n == "None") {
      e->value = None{};
    } else {
      e->op = Op::Name;
      names_varargs_ |= n == "varargs";
      names_kwargs_ |= n == "kwargs";
    }
  } else if (is(Type::String)) {
    std::string text;
    while (is(Type::String)) text += take().text;
    e->value = constant(std::move(text));
  } else if (is(Type::Int)) {
    e->value = take().integer;
  } else if (is(Type::Float)) {
    e->value = take().real;
  } else if (skip_op("(")) {
    e = tuple(TupleOf::Expressions, {}, true);
    expect_op(")");
  } else if (is_op("[")) {
    e = list();
  } else if (is_op("{")) {
    e = dict();
  } else {
    fail("expected an expression, got {}", shown());
  }
  return e;
}

ExprPtr ExprParser::tuple(TupleOf of, std::string_view end, bool parenthesized) {
  const int line = peek().line;
  std::vector<ExprPtr> items;
  bool comma = false;
  while (true) {
    if (is(Type::PrintEnd) || is(Type::TagEnd) || is_op(")") || (!end.empty() && is_word(end))) {
      break;
    }
    switch (of) {
      case TupleOf::Expressions:
        items.push_back(expression());
        break;
      case TupleOf::NoConditionals:
        items.push_back(or_expression());
        break;
      case TupleOf::Targets: {
        ExprPtr t = primary();
        if (end.empty() && t->op == Op::Name && is_op(".")) {
          auto attribute = node(Op::Attr, take().line);
          attribute->name = expect_name();
          add(*attribute, std::move(t));
          t = std::move(attribute);
        }
        items.push_back(std::move(t));
      }
    }
    if (!skip_op(",")) break;
    comma = true;
  }
  if (!comma) {
    if (!items.empty()) return std::move(items.front());
    if (!parenthesized) fail("expected an expression, got {}", shown());
  }
  auto e = node(Op::Tuple, line);
  for (auto& i : items) add(*e, std::move(i));
  return e;
}

ExprPtr ExprParser::list() {
  auto e = node(Op::List, take().line);
  while (!is_op("]")) {
    if (!e->kids.empty()) expect_op(",");
    if (is_op("]")) break;
    add(*e, expression());
  }
  take();
  return e;
}

ExprPtr ExprParser::dict() {
  auto e = node(Op::Dict, take().line);
  while (!is_op("}")) {
    if (!e->kids.empty()) expect_op(",");
    if (is_op("}")) break;
    add(*e, expression());
    expect_op(":");
    add(*e, expression());
  }
  take();
  return e;
}

ExprPtr ExprParser::postfix(ExprPtr e) {
  while (true) {
    const int line = peek().line;
    if (skip_op(".")) {
      auto outer = node(is(Type::Int) ? Op::Item : Op::Attr, line);
      add(*outer, std::move(e));
      if (is(Type::Int)) {
        auto place = node(Op::Const, line);
        place->value = take().integer;
        add(*outer, std::move(place));
      } else {
        outer->name = expect_name();
      }
      e = std::move(outer);
    } else if (skip_op("[")) {
      e = subscript(std::move(e));
    } else if (is_op("(")) {
      auto call = node(Op::Call, line);
      add(*call, std::move(e));
      arguments(*call);
      e = std::move(call);
    } else {
      return e;
    }
  }
}

ExprPtr ExprParser::subscript(ExprPtr e) {
  auto outer = node(Op::Item, peek().line);
  add(*outer, std::move(e));
  ExprPtr first = is_op(":") ? nullptr : expression();
  if (is_op(":")) {
    outer->op = Op::Slice;
    add(*outer, std::move(first));
    for (int bound = 0; bound < 2; ++bound) {
      const bool given = skip_op(":") && !is_op("]") && !is_op(":");
      add(*outer, given ? expression() : nullptr);
    }
  } else if (is_op(",")) {
    auto all = node(Op::Tuple, outer->line);
    add(*all, std::move(first));
    while (skip_op(",")) add(*all, expression());
    add(*outer, std::move(all));
  } else {
    add(*outer, std::move(first));
  }
  expect_op("]");
  return outer;
}

void ExprParser::arguments(Expr& call) {
  const int line = peek().line;
  expect_op("(");
  while (!is_op(")")) {
    if (call.kids.size() > 1) {
      expect_op(",");
      if (is_op(")")) break;
    }
    const bool named = is(Type::Name) && is_op("=", 1);
    const bool star = is_op("*");
    if (named || star || is_op("**")) {
      call.keywords.push_back(take().text);
      if (named) take();
    } else if (!call.keywords.empty()) {
      fail_at(line, "a positional argument after a named one");
    }
    add(call, expression());
  }
  take();
}

ExprPtr ExprParser::filters(ExprPtr target) {
  while (skip_op("|")) target = one_filter(std::move(target));
  return target;
}

ExprPtr ExprParser::one_filter(ExprPtr target) {
  auto e = node(Op::Filter, peek().line);
  e->name = expect_name();
  while (skip_op(".")) e->name += "." + expect_name();
  add(*e, std::move(target));
  if (is_op("(")) arguments(*e);
  return e;
}

ExprPtr ExprParser::test(ExprPtr e) {
  auto t = node(Op::Test, take().line);
  const bool negated = skip_word("not");
  t->name = expect_name();
  while (skip_op(".")) t->name += "." + expect_name();
  add(*t, std::move(e));
  if (is_op("(")) {
    arguments(*t);
  } else if ((is(Type::Name) || is(Type::String) || is(Type::Int) || is(Type::Float) ||
              is_op("[") || is_op("{")) &&
             !is_word("else") && !is_word("or") && !is_word("and")) {
    if (is_word("is")) fail("tests cannot be chained with is");
    add(*t, postfix(primary()));
  }
  if (!negated) return t;
  auto inverse = node(Op::Not, t->line);
  add(*inverse, std::move(t));
  return inverse;
}

void ExprParser::check_target(const Expr& e) const {
  if (e.op == Op::Tuple) {
    for (const auto& kid : e.kids) check_target(*kid);
  } else if (e.op != Op::Name && e.op != Op::Attr) {
    fail_at(e.line, "cannot assign to this");
  }
}

ExprPtr ExprParser::target(std::string_view end) {
  ExprPtr t = tuple(TupleOf::Targets, end);
  check_target(*t);
  return t;
}

}  // namespace nibble::jinja
