// Finds added tokens (whole literals such as <|im_start|>) in text.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/tokenizer.h"
#include "text/unicode.h"

namespace nibble {

class AddedTokens {
 public:
  // Error on a text that is not UTF-8 or longer than 1024 bytes. Of equal texts the first counts;
  // empty ones match nothing.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  // Cuts `text` (valid UTF-8): plain(std::string_view) for what stands between tokens, never
  // empty, and token(id) for each token, in order. A special token counts only if `special`.
  // The leftmost longest match wins, before its flags are looked at, as in the reference library.
  template <class Plain, class Token>
  void cut(std::string_view text, bool special, Plain plain, Token token) const {
    std::size_t done = 0;
    for (std::size_t at = 0; const auto hit = find(text, at);) {
      auto [begin, end, added] = *hit;
      at = end;
      if (added->special && !special) continue;
      if (added->single_word && touches_word(text, begin, end)) continue;
      if (added->lstrip) {
        while (begin > done && space_before(text, begin)) begin = previous_char(text, begin);
        begin = std::max(begin, done);
      }
      if (added->rstrip) end = skip_spaces(text, end);
      if (begin >= end) continue;  // a blank token that the one before has stripped away
      if (done < begin) plain(text.substr(done, begin - done));
      token(added->id);
      done = end;
    }
    if (done < text.size()) plain(text.substr(done));
  }

 private:
  struct Hit {
    std::size_t begin, end;
    const AddedToken* token;
  };
  std::optional<Hit> find(std::string_view text, std::size_t from) const;
  static bool touches_word(std::string_view text, std::size_t begin, std::size_t end);
  static bool space_before(std::string_view text, std::size_t end);
  static std::size_t skip_spaces(std::string_view text, std::size_t from);

  std::vector<AddedToken> sorted_;                                    // by text, bytewise
  std::array<std::pair<std::uint32_t, std::uint32_t>, 256> first_{};  // range by first byte
};

}  // namespace nibble
