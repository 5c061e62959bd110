#include "text/tokenizer.h"
#include "text/unicode.h"

namespace nibble {

Detokenizer::Detokenizer(const Tokenizer& t, bool skip_special)
    : tokenizer_(&t), skip_special_(skip_special) {}

std::string Detokenizer::push(std::int32_t id) {
  pending_ += tokenizer_->token_bytes(id, skip_special_);
  std::string text;
  pending_.erase(0, append_lossy(text, pending_, false));
  return text;
}

std::string Detokenizer::flush() {
  std::string text;
  append_lossy(text, pending_, true);
  pending_.clear();
  return text;
}

}  // namespace nibble
