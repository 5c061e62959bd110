// Template source -> syntax tree. The grammar is Jinja2's, without template inheritance.
#pragma once
#include <string_view>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/token_stream.h"

namespace nibble::jinja {

// Throws Error with the line and what is malformed or not supported.
Body parse(std::string_view source);

// Expressions (parse_expr.cc), over a stream of tokens.
class ExprParser : protected TokenStream {
 public:
  using TokenStream::TokenStream;

 protected:
  static constexpr int kMaxDepth = 250;  // of an expression's tree: a chain counts its links

  enum class TupleOf { Expressions, NoConditionals, Targets };
  ExprPtr expression();     // with a conditional
  ExprPtr or_expression();  // without
  // Also a tuple without parentheses. `end` is a word that ends it.
  ExprPtr tuple(TupleOf of, std::string_view end = {}, bool parenthesized = false);
  // `| f | g ...` applied to target, which may be null.
  ExprPtr filters(ExprPtr target);
  ExprPtr one_filter(ExprPtr target);                  // the name and arguments after a `|`
  ExprPtr target(std::string_view end = {});           // of an assignment
  bool names_varargs_ = false, names_kwargs_ = false;  // seen since last reset

 private:
  ExprPtr node(Expr::Op op, int line) const;
  void add(Expr& parent, ExprPtr kid) const;
  ExprPtr binary(Expr::Op op, int line, ExprPtr left, ExprPtr right) const;
  ExprPtr and_expression();
  ExprPtr not_expression();
  ExprPtr comparison();
  ExprPtr sum();
  ExprPtr concat();
  ExprPtr product();
  ExprPtr power();
  ExprPtr unary(bool with_filter = true);
  ExprPtr primary();
  ExprPtr list();
  ExprPtr dict();
  ExprPtr postfix(ExprPtr e);
  ExprPtr subscript(ExprPtr e);
  ExprPtr test(ExprPtr e);
  void arguments(Expr& call);
  void check_target(const Expr& e) const;
};

}  // namespace nibble::jinja
