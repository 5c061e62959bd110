#include "text/jinja/token_stream.h"

namespace nibble::jinja {

using Type = Token::Type;

Token& TokenStream::take() {
  Token& t = tokens_[next_];
  if (next_ + 1 < tokens_.size()) ++next_;
  return t;
}
bool TokenStream::is_op(std::string_view op, std::size_t ahead) const {
  return peek(ahead).type == Type::Op && peek(ahead).text == op;
}
bool TokenStream::is_word(std::string_view word, std::size_t ahead) const {
  return peek(ahead).type == Type::Name && peek(ahead).text == word;
}
bool TokenStream::skip_op(std::string_view op) {
  if (!is_op(op)) return false;
  take();
  return true;
}
bool TokenStream::skip_word(std::string_view word) {
  if (!is_word(word)) return false;
  take();
  return true;
}
void TokenStream::expect_op(std::string_view op) {
  if (!skip_op(op)) fail("expected '{}', got {}", op, shown());
}
void TokenStream::expect_word(std::string_view word) {
  if (!skip_word(word)) fail("expected '{}', got {}", word, shown());
}
void TokenStream::expect(Type type) {
  if (!is(type)) {
    fail("expected {}, got {}",
         type == Type::TagEnd ? "the end of the tag '%}'" : "the end of the print tag '}}'",
         shown());
  }
  take();
}
std::string TokenStream::expect_name() {
  if (!is(Type::Name)) fail("expected a name, got {}", shown());
  return take().text;
}

std::string TokenStream::shown() const {
  const Token& t = peek();
  switch (t.type) {
    case Type::PrintEnd:
      return "the end of the print tag '}}'";
    case Type::TagEnd:
      return "the end of the tag '%}'";
    case Type::End:
      return "the end of the template";
    case Type::Data:
    case Type::PrintBegin:
    case Type::TagBegin:
      return "text";
    case Type::String:
      return "a string";
    default:
      return fmt::format("'{}'", t.text.substr(0, 40));
  }
}

}  // namespace nibble::jinja
