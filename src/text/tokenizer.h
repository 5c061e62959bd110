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
  // One pre-tokenizer step, applied in order to every piece the one before left. `pattern` is a
  // PCRE2 regex (UTF, UCP). isolated: matches and the text between them are the pieces (all
  // published patterns); digits_one_by_one needs no pattern.
  struct Split {
    std::string pattern;
    bool isolated = true;
  };
  std::vector<std::string> vocab;  // id -> token in the byte-to-unicode alphabet ("" = no such id)
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  std::vector<AddedToken> added;
  std::vector<Split> splits;
  bool nfc = false;
  bool add_prefix_space = false;
  bool ignore_merges = false;  // Llama 3: a piece that is a vocab entry is taken whole
  std::vector<std::int32_t> prefix_ids, suffix_ids;  // what encode(add_special) puts around
};

// Parses a Hugging Face tokenizer.json (BPE, byte-level). Error naming `where`, the part that is
// unsupported or malformed, and the remedy.
TokenizerSpec tokenizer_spec_from_json(std::string_view json, std::string_view where);

// The splits (and nfc, ignore_merges) of a GGUF `tokenizer.ggml.pre` name: smollm, llama-bpe,
// gpt-2, qwen2, qwen35 and their aliases. Error listing the known ones.
void set_pretokenizer(TokenizerSpec& spec, std::string_view pre_name);

class Tokenizer {
 public:
  explicit Tokenizer(TokenizerSpec spec);  // Error when the spec is inconsistent
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  std::int32_t size() const;  // one past the largest id
  // text may hold invalid UTF-8: every byte still round-trips. parse_special: added special
  // tokens in the text become their ids (chat templates); otherwise they are plain text.
  // add_special: prefix and suffix ids (BOS) are added. Thread-safe.
  std::vector<std::int32_t> encode(std::string_view text, bool parse_special,
                                   bool add_special) const;
  // Bytes of the ids. skip_special: special added tokens give nothing. An unknown id: Error.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special) const;
  std::string token_bytes(std::int32_t id, bool skip_special = false) const;  // raw bytes of one id
  bool is_special(std::int32_t id) const;
  bool is_defined(std::int32_t id) const;  // false: padding id of the vocabulary, never sampled
  std::int32_t find(std::string_view token_text) const;  // added token or vocab entry; -1 if none

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Streams ids to text without ever printing part of a character.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& t, bool skip_special = true);
  std::string push(std::int32_t id);  // complete characters only; invalid bytes become U+FFFD
  std::string flush();                // what is left, incomplete bytes as U+FFFD

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace nibble
