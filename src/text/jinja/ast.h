// The syntax tree of a template. Its depth is bounded by the parser, so recursion over it is safe.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace nibble::jinja {

struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using Body = std::vector<std::unique_ptr<Stmt>>;

struct Expr {
  enum class Op {
    Const,  // value
    Name,   // name
    Tuple,
    List,
    Dict,    // kids: key, value, key, value ...
    Attr,    // kids[0] . name
    Item,    // kids[0] [ kids[1] ]
    Slice,   // kids[0] [ kids[1] : kids[2] : kids[3] ], absent bounds null
    Call,    // kids[0] ( arguments )
    Filter,  // kids[0] | name ( arguments ); kids[0] null in a filter or set block
    Test,    // kids[0] is name ( arguments )
    Not,
    Neg,
    Pos,
    And,
    Or,
    Cond,    // kids[1] if kids[0] else kids[2], which may be null
    Concat,  // ~
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
    Compare,  // kids[0] keywords[0] kids[1] keywords[1] kids[2] ...
  };
  Op op;
  int line;
  int depth = 1;
  std::string name;
  Value value;
  std::vector<ExprPtr> kids;
  // Arguments are kids[1...]; the last keywords.size() of them are passed by these names, where
  // "*" and "**" unpack a sequence and a mapping.
  std::vector<std::string> keywords;
};

struct Stmt {
  enum class Kind {
    Data,         // text
    Print,        // expr
    If,           // tests[i] -> bodies[i]; bodies[tests.size()], if present: else
    For,          // target in expr, if filter: bodies[0], else bodies[1] (may be empty)
    Set,          // target = expr
    SetBlock,     // target = bodies[0], through the filters of expr (may be null)
    Macro,        // text: its name; params, bodies[0]
    Call,         // expr: the call; params and bodies[0] make its caller()
    FilterBlock,  // bodies[0] through the filters of expr
    With,         // params: name = value, around bodies[0]
    Generation,   // bodies[0], in a scope of its own
    Break,
    Continue,
  };
  struct Param {
    std::string name;
    ExprPtr value;  // default of a macro's parameter, may be null
  };
  Kind kind;
  int line;
  std::string text;
  ExprPtr target;  // Name, Tuple of targets, or Attr of a Name (a namespace's attribute)
  ExprPtr expr, filter;
  std::vector<ExprPtr> tests;
  std::vector<Param> params;
  std::vector<Body> bodies;
  bool takes_varargs = false, takes_kwargs = false;  // a macro whose body names them
};

}  // namespace nibble::jinja
