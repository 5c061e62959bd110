#include "text/jinja/parser.h"

#include <algorithm>
#include <utility>

namespace nibble::jinja {
namespace {

using Type = Token::Type;
using Kind = Stmt::Kind;
using Words = std::initializer_list<std::string_view>;

class Parser : ExprParser {
 public:
  explicit Parser(std::vector<Token> tokens) : ExprParser(std::move(tokens)) {}

  Body parse() {
    Body all = body({}, "");
    return all;
  }

 private:
  static std::unique_ptr<Stmt> make(Kind kind, int line) {
    auto s = std::make_unique<Stmt>();
    s->kind = kind;
    s->line = line;
    return s;
  }

  // Statements up to a tag that begins with one of `ends`, whose word is the next token; without
  // ends, up to the end of the template. `tag`: whose body it is.
  Body body(Words ends, std::string_view tag) {
    const Nest nest(*this);
    const int line = peek().line;
    Body out;
    while (!is(Type::End)) {
      if (is(Type::Data)) {
        out.push_back(make(Kind::Data, peek().line));
        out.back()->text = take().text;
      } else if (is(Type::PrintBegin)) {
        out.push_back(make(Kind::Print, take().line));
        out.back()->expr = tuple(TupleOf::Expressions);
        expect(Type::PrintEnd);
      } else {
        take();
        if (std::any_of(ends.begin(), ends.end(), [&](auto w) { return is_word(w); })) return out;
        statement(out);
        expect(Type::TagEnd);
      }
    }
    if (ends.size() > 0) fail_at(line, "'{}' has no '{}'", tag, *(ends.end() - 1));
    return out;
  }

  // The end of the opening tag, the body, and the word of its end tag.
  Body block(std::string_view tag, std::string_view end) {
    expect_end_of_opening();
    Body b = body({end}, tag);
    take();
    return b;
  }
  void expect_end_of_opening() {
    skip_op(":");
    expect(Type::TagEnd);
  }

  void statement(Body& out) {
    const int line = peek().line;
    if (!is(Type::Name)) fail("expected the name of a tag, got {}", shown());
    const std::string word = take().text;
    if (word == "set") {
      out.push_back(set(line));
    } else if (word == "if") {
      out.push_back(if_(line));
    } else if (word == "for") {
      out.push_back(for_(line));
    } else if (word == "macro") {
      out.push_back(make(Kind::Macro, line));
      out.back()->text = expect_name();
      signature(*out.back());
      macro_body(*out.back(), word, "endmacro");
    } else if (word == "call") {
      out.push_back(make(Kind::Call, line));
      if (is_op("(")) signature(*out.back());
      out.back()->expr = expression();
      if (out.back()->expr->op != Expr::Op::Call) fail_at(line, "'call' needs a call");
      macro_body(*out.back(), word, "endcall");
    } else if (word == "generation") {
      out.push_back(make(Kind::Generation, line));
      macro_body(*out.back(), word, "endgeneration");
    } else if (word == "filter") {
      out.push_back(make(Kind::FilterBlock, line));
      out.back()->expr = filters(one_filter(nullptr));
      out.back()->bodies.push_back(block(word, "endfilter"));
    } else if (word == "with") {
      out.push_back(with(line));
    } else if (word == "print") {
      do {
        out.push_back(make(Kind::Print, line));
        out.back()->expr = expression();
      } while (skip_op(","));
    } else if (word == "break" || word == "continue") {
      if (loops_ == 0) fail_at(line, "'{}' outside a loop", word);
      out.push_back(make(word == "break" ? Kind::Break : Kind::Continue, line));
    } else {
      fail_at(line, "the tag '{}' is not supported here", word.substr(0, 40));
    }
  }

  std::unique_ptr<Stmt> set(int line) {
    auto s = make(Kind::Set, line);
    s->target = target();
    if (skip_op("=")) {
      s->expr = tuple(TupleOf::Expressions);
      return s;
    }
    s->kind = Kind::SetBlock;
    s->expr = filters(nullptr);
    s->bodies.push_back(block("set", "endset"));
    return s;
  }

  std::unique_ptr<Stmt> if_(int line) {
    auto s = make(Kind::If, line);
    do {
      s->tests.push_back(tuple(TupleOf::NoConditionals));
      expect_end_of_opening();
      s->bodies.push_back(body({"elif", "else", "endif"}, "if"));
    } while (skip_word("elif"));
    if (skip_word("else"))
      s->bodies.push_back(block("else", "endif"));
    else
      expect_word("endif");
    return s;
  }

  std::unique_ptr<Stmt> for_(int line) {
    auto s = make(Kind::For, line);
    s->target = target("in");
    expect_word("in");
    s->expr = tuple(TupleOf::NoConditionals, "recursive");
    if (skip_word("if")) s->filter = expression();
    if (is_word("recursive")) fail("recursive loops are not supported");
    expect_end_of_opening();
    ++loops_;
    s->bodies.push_back(body({"else", "endfor"}, "for"));
    --loops_;
    if (skip_word("else")) {
      s->bodies.push_back(block("else", "endfor"));
    } else {
      expect_word("endfor");
      s->bodies.emplace_back();
    }
    return s;
  }

  std::unique_ptr<Stmt> with(int line) {
    auto s = make(Kind::With, line);
    while (!is(Type::TagEnd) && !is_op(":")) {
      if (!s->params.empty()) expect_op(",");
      std::string name = expect_name();
      expect_op("=");
      s->params.push_back({std::move(name), expression()});
    }
    s->bodies.push_back(block("with", "endwith"));
    return s;
  }

  void signature(Stmt& s) {
    expect_op("(");
    while (!is_op(")")) {
      if (!s.params.empty()) expect_op(",");
      std::string name = expect_name();
      ExprPtr value = skip_op("=") ? expression() : nullptr;
      if (value == nullptr && !s.params.empty() && s.params.back().value != nullptr) {
        fail("the parameter '{}' without a default follows one with a default", name);
      }
      s.params.push_back({std::move(name), std::move(value)});
    }
    take();
  }

  // A body that is called: loops around it are not its own.
  void macro_body(Stmt& s, std::string_view tag, std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    const bool varargs = std::exchange(names_varargs_, false);
    const bool kwargs = std::exchange(names_kwargs_, false);
    s.bodies.push_back(block(tag, end));
    s.takes_varargs = std::exchange(names_varargs_, varargs);
    s.takes_kwargs = std::exchange(names_kwargs_, kwargs);
    loops_ = loops;
  }

  int loops_ = 0;
};

}  // namespace

Body parse(std::string_view source) { return Parser(tokenize(source)).parse(); }

}  // namespace nibble::jinja
