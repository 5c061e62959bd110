// Cuts text into the pieces that byte-pair merging must not cross.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace nibble {

// The PCRE2 (UTF, UCP, MULTILINE) spelling of a pattern as tokenizer.json writes it, in
// Oniguruma's syntax. Error naming any construct that is not known to mean the same in both.
std::string pcre2_pattern(std::string_view pattern);

class Pretokenizer {
 public:
  // Error naming the pattern that does not compile.
  explicit Pretokenizer(std::span<const TokenizerSpec::Split> splits);
  ~Pretokenizer();
  Pretokenizer(Pretokenizer&&) noexcept;

  // Calls sink(piece) for each piece of `text` (valid UTF-8), in order; pieces are not empty and
  // point into `text`. Thread-safe. Error when a pattern backtracks out of proportion to the text
  // (work is at most linear in its length), or needs too much memory.
  void split(std::string_view text, const std::function<void(std::string_view)>& sink) const;

 private:
  struct Step;
  class Run;
  std::vector<Step> steps_;
};

}  // namespace nibble
