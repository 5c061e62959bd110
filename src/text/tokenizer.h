// Byte-level BPE: text <-> ids, from tokenizer.json or from GGUF metadata.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

struct AddedToken {
  std::int32_t id = 0;
  std::string text;      // literal UTF-8
  bool special = false;  // hidden in decoded text when skip_special
  bool lstrip = false, rstrip = false, single_word = false, normalized = false;
};

// Everything a tokenizer needs, free of file formats.
struct TokenizerSpec {
  // One pre-tokenizer step, applied in order to every piece the one before left. `pattern` is
  // spelled as in tokenizer.json (Oniguruma syntax). isolated: the matches and the text between
  // them are the pieces (nearly all published files); otherwise the matches alone, what is
  // between them is dropped.
  struct Split {
    std::string pattern;
    bool isolated = true;
  };
  std::vector<std::string> vocab;  // id -> token in the byte-to-unicode alphabet ("" = no such id)
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  std::vector<AddedToken> added;
  std::vector<Split> splits;
  bool nfc = false;
  bool add_prefix_space = false;  // text, and what follows an added token, begins with a space
  bool ignore_merges = false;     // Llama 3: a piece that is a vocab entry is taken whole
  std::vector<std::int32_t> prefix_ids, suffix_ids;  // what encode(add_special) puts around
};

// Parses a Hugging Face tokenizer.json (BPE, byte-level). Error naming `where`, the part that is
// unsupported or malformed, and the remedy. Memory stays in proportion to the text.
TokenizerSpec tokenizer_spec_from_json(std::string_view json, std::string_view where);

// Sets the splits, nfc and ignore_merges that a GGUF `tokenizer.ggml.pre` name stands for: smollm,
// llama-bpe, gpt-2, qwen2, qwen35 and their aliases. Error listing the known ones.
void set_pretokenizer(TokenizerSpec& spec, std::string_view pre_name);

class Tokenizer {
 public:
  // Error when the spec is inconsistent: a merge outside the vocabulary, an added token whose id
  // is another's, a pattern that does not compile or may mean something else in PCRE2.
  explicit Tokenizer(TokenizerSpec spec);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  std::int32_t size() const;  // one past the largest id
  // The same ids as Hugging Face's tokenizers for UTF-8 text. Invalid UTF-8, which that does not
  // take, is cut out: each run of invalid bytes is a piece of its own, so every byte round-trips
  // (unless the vocabulary has no token for it: such a byte gives nothing, as there).
  // parse_special: added special tokens in the text become their ids (chat templates); otherwise
  // they are plain text; added tokens that are not special are always found. add_special: prefix
  // and suffix ids (BOS) are added. Time O(n log n). At most 1 GiB of text. Thread-safe.
  std::vector<std::int32_t> encode(std::string_view text, bool parse_special,
                                   bool add_special) const;
  // Bytes of the ids. skip_special: special added tokens give nothing. An unknown id: Error.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special) const;
  std::string token_bytes(std::int32_t id, bool skip_special = false) const;  // decode() of one id
  bool is_special(std::int32_t id) const;
  bool is_defined(std::int32_t id) const;  // false: padding id of the vocabulary, never sampled
  // The id of an added token's text or of a vocabulary entry (in the byte-to-unicode alphabet); -1
  // if none.
  std::int32_t find(std::string_view token_text) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Streams ids to text without ever printing part of a character. All that push() and flush() give,
// put together, is the decoded bytes with each invalid maximal subpart as U+FFFD. `t` must outlive
// it; one stream, one thread.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& t, bool skip_special = true);
  std::string push(std::int32_t id);  // complete characters only; an unknown id: Error
  std::string flush();                // what is left: at most one incomplete character, as U+FFFD

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace nibble
