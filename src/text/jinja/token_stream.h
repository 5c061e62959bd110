// The tokens of a template, read from front to back.
#pragma once
#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/lexer.h"
#include "text/jinja/run.h"

namespace nibble::jinja {

class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  static constexpr int kMaxNesting = 200;  // brackets, operators and blocks within each other

  class Nest {  // one more bracket or block open
   public:
    explicit Nest(TokenStream& p) : p_(p) {
      if (++p_.nesting_ > kMaxNesting) p_.fail("nested more than {} deep", kMaxNesting);
    }
    ~Nest() { --p_.nesting_; }
    Nest(const Nest&) = delete;
    Nest& operator=(const Nest&) = delete;

   private:
    TokenStream& p_;
  };

  template <class... A>
  [[noreturn]] void fail(fmt::format_string<A...> f, A&&... a) const {
    fail_at(peek().line, f, std::forward<A>(a)...);
  }
  const Token& peek(std::size_t ahead = 0) const {
    return tokens_[std::min(next_ + ahead, tokens_.size() - 1)];
  }
  Token& take();
  bool is(Token::Type type) const { return peek().type == type; }
  bool is_op(std::string_view op, std::size_t ahead = 0) const;
  bool is_word(std::string_view word, std::size_t ahead = 0) const;
  bool skip_op(std::string_view op);
  bool skip_word(std::string_view word);
  void expect_op(std::string_view op);
  void expect_word(std::string_view word);
  void expect(Token::Type type);
  std::string expect_name();
  std::string shown() const;  // the next token, for messages

 private:
  std::vector<Token> tokens_;
  std::size_t next_ = 0;
  int nesting_ = 0;
};

}  // namespace nibble::jinja
