// Byte-pair merging: one pre-tokenized piece of bytes to token ids.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nibble {

// Lets unordered_map<std::string, ...> be searched by string_view.
struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
};
template <class T>
using StringMap = std::unordered_map<std::string, T, StringHash, std::equal_to<>>;

// The bytes that `token` spells in the byte-to-unicode alphabet (GPT-2's, one printable character
// a byte); nullopt when it has another character.
std::optional<std::string> from_byte_alphabet(std::string_view token);
// The reverse, for one byte.
std::string byte_alphabet(std::uint8_t byte);

class Bpe {
 public:
  // vocab: id -> token in the byte alphabet, "" where there is none. merges: by rank; of equal
  // pairs the last counts. whole: bytes -> id of the pieces taken whole, before any merge.
  // Error naming a merge whose parts or result are not in the vocabulary.
  Bpe(const StringMap<std::int32_t>& vocab,
      const std::vector<std::pair<std::string, std::string>>& merges,
      StringMap<std::int32_t> whole);

  // Work space of one call chain; not shared between threads.
  struct Scratch {
    struct Symbol {
      std::int32_t id, previous, next;  // indices into symbols; -1: none
    };
    struct Span {
      std::size_t begin, count;
    };
    std::vector<Symbol> symbols;
    std::vector<std::uint64_t> heap;  // candidates: rank << 32 | index of the left symbol
    StringMap<Span> seen;  // short pieces already encoded into `out`: where their ids stand
  };

  // Appends the ids of `piece` (any bytes, less than 2 GiB) to `out`: the pair of lowest rank,
  // leftmost first, is merged until none is left; O(n log n). A byte without a token gives
  // nothing, as in Hugging Face's tokenizers. One Scratch serves one `out`, only appended to.
  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const;

 private:
  struct Merge {
    std::uint64_t pair = ~std::uint64_t{0};  // left id << 32 | right id; all ones: empty slot
    std::int32_t rank = 0, id = 0;
  };
  const Merge* find(std::int32_t left, std::int32_t right) const;
  void merge(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const;

  std::array<std::int32_t, 256> byte_ids_{};  // -1: no token
  std::vector<Merge> table_;                  // open addressing, a power of two, half empty
  int shift_ = 0;
  StringMap<std::int32_t> whole_;
};

}  // namespace nibble
