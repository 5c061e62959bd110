#include "text/tokenizer_added.h"

#include <algorithm>

#include "base/error.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxText = 1024;  // bytes; bounds the work of one position

unsigned char byte(std::string_view s, std::size_t i) { return static_cast<unsigned char>(s[i]); }

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : sorted_(std::move(tokens)) {
  for (const auto& t : sorted_) {
    require(t.text.size() <= kMaxText, "added token {}: {} bytes, at most {} are supported", t.id,
            t.text.size(), kMaxText);
    require(is_valid_utf8(t.text), "added token {}: its text is not UTF-8", t.id);
  }
  std::erase_if(sorted_, [](const auto& t) { return t.text.empty(); });
  std::stable_sort(sorted_.begin(), sorted_.end(),
                   [](const auto& a, const auto& b) { return a.text < b.text; });
  const auto same = [](const auto& a, const auto& b) { return a.text == b.text; };
  sorted_.erase(std::unique(sorted_.begin(), sorted_.end(), same), sorted_.end());
  for (std::uint32_t i = 0; i < sorted_.size(); ++i) {
    auto& range = first_[byte(sorted_[i].text, 0)];
    if (range.second == 0) range.first = i;
    range.second = i + 1;
  }
}

std::optional<AddedTokens::Hit> AddedTokens::find(std::string_view text, std::size_t from) const {
  for (std::size_t at = from; at < text.size(); ++at) {
    // [lo, hi): the tokens that share the `n` bytes at `at`; the one of length n stands first.
    auto lo = first_[byte(text, at)].first, hi = first_[byte(text, at)].second;
    const AddedToken* longest = nullptr;
    for (std::size_t n = 1; lo < hi; ++n) {
      if (sorted_[lo].text.size() == n) longest = &sorted_[lo++];
      if (at + n == text.size()) break;
      const unsigned char wanted = byte(text, at + n);
      const auto narrow = [&](std::uint32_t start, auto before) {
        const auto it = std::partition_point(sorted_.begin() + start, sorted_.begin() + hi, before);
        return static_cast<std::uint32_t>(it - sorted_.begin());
      };
      lo = narrow(lo, [&](const AddedToken& t) { return byte(t.text, n) < wanted; });
      hi = narrow(lo, [&](const AddedToken& t) { return byte(t.text, n) == wanted; });
    }
    if (longest != nullptr) return Hit{at, at + longest->text.size(), longest};
  }
  return {};
}

bool AddedTokens::touches_word(std::string_view text, std::size_t begin, std::size_t end) {
  return (begin > 0 && is_word_char(decode_utf8(text.substr(previous_char(text, begin))).code)) ||
         (end < text.size() && is_word_char(decode_utf8(text.substr(end)).code));
}

bool AddedTokens::space_before(std::string_view text, std::size_t end) {
  return is_space(decode_utf8(text.substr(previous_char(text, end))).code);
}

std::size_t AddedTokens::skip_spaces(std::string_view text, std::size_t from) {
  while (from < text.size()) {
    const Utf8Char c = decode_utf8(text.substr(from));
    if (!is_space(c.code)) break;
    from += c.length;
  }
  return from;
}

}  // namespace nibble
