#include "text/tokenizer.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "text/bpe.h"
#include "text/pretokenizer.h"
#include "text/tokenizer_added.h"
#include "text/unicode.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxText = std::size_t{1} << 30;
constexpr std::int32_t kMaxId = 1 << 24;

// Added tokens of one pass over the text: those sought in it as it stands, or normalised.
AddedTokens added_tokens(const TokenizerSpec& spec, bool normalized) {
  std::vector<AddedToken> tokens;
  for (AddedToken t : spec.added) {
    if (t.normalized != normalized) continue;
    if (normalized && spec.nfc && is_valid_utf8(t.text)) t.text = nfc(t.text);
    tokens.push_back(std::move(t));
  }
  return AddedTokens(std::move(tokens));
}

}  // namespace

struct Tokenizer::Impl {
  struct Token {
    std::string bytes;
    bool defined = false, special = false;
  };
  struct Run;

  bool nfc, prefix_space;
  std::vector<std::int32_t> prefix_ids, suffix_ids;
  AddedTokens raw, normalized;
  Pretokenizer pretokenizer;
  std::vector<Token> tokens;
  StringMap<std::int32_t> ids;
  std::unique_ptr<Bpe> bpe;

  explicit Impl(TokenizerSpec spec)
      : nfc(spec.nfc),
        prefix_space(spec.add_prefix_space),
        prefix_ids(std::move(spec.prefix_ids)),
        suffix_ids(std::move(spec.suffix_ids)),
        raw(added_tokens(spec, false)),
        normalized(added_tokens(spec, true)),
        pretokenizer(spec.splits) {
    require(spec.vocab.size() <= kMaxId, "a vocabulary of {} ids: at most {} are supported",
            spec.vocab.size(), kMaxId);
    tokens.resize(spec.vocab.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::string& text = spec.vocab[i];
      if (text.empty()) continue;
      tokens[i] = {from_byte_alphabet(text).value_or(text), true, false};
      ids.emplace(text, static_cast<std::int32_t>(i));  // of equal tokens the first counts
    }
    bpe = std::make_unique<Bpe>(ids, spec.merges, whole_pieces(spec));
    for (const auto& t : spec.added) add(spec, t);
    for (const auto* list : {&prefix_ids, &suffix_ids})
      for (const std::int32_t id : *list) token(id);
  }

  const Token& token(std::int32_t id) const {
    require(id >= 0 && static_cast<std::size_t>(id) < tokens.size() && tokens[id].defined,
            "token id {} is not in the vocabulary (ids 0 to {})", id,
            static_cast<std::int64_t>(tokens.size()) - 1);
    return tokens[id];
  }

 private:
  void add(const TokenizerSpec& spec, const AddedToken& t) {
    require(t.id >= 0 && t.id < kMaxId, "added token '{}': id {} is not between 0 and {}", t.text,
            t.id, kMaxId - 1);
    const auto id = static_cast<std::size_t>(t.id);
    if (id >= tokens.size()) tokens.resize(id + 1);
    const bool in_vocab = id < spec.vocab.size() && !spec.vocab[id].empty();
    const std::string& known = in_vocab ? spec.vocab[id] : tokens[id].bytes;
    require(!tokens[id].defined || known == t.text,
            "added token '{}' has id {}, which belongs to '{}'; the vocabulary is inconsistent",
            t.text, t.id, known);
    tokens[id] = {t.text, true, t.special};
    ids.insert_or_assign(t.text, t.id);
  }

  // Llama 3 takes a piece that is a token as that token; special ones only ever come from
  // parse_special.
  static StringMap<std::int32_t> whole_pieces(const TokenizerSpec& spec) {
    StringMap<std::int32_t> whole;
    if (!spec.ignore_merges) return whole;
    for (std::size_t i = 0; i < spec.vocab.size(); ++i) {
      const auto bytes = from_byte_alphabet(spec.vocab[i]);
      if (bytes && !bytes->empty()) whole.emplace(*bytes, static_cast<std::int32_t>(i));
    }
    for (const auto& t : spec.added)
      if (t.special) whole.erase(t.text);
    return whole;
  }
};

// One encode() call: text -> stretches of UTF-8 -> added tokens -> NFC -> pieces -> ids.
struct Tokenizer::Impl::Run {
  const Impl& t;
  bool special;
  std::vector<std::int32_t>& out;
  Bpe::Scratch scratch = {};
  std::function<void(std::string_view)> piece = [this](std::string_view s) {
    t.bpe->encode(s, scratch, out);
  };

  void text(std::string_view s) {
    while (!s.empty()) {
      const std::size_t valid = valid_prefix(s);
      t.raw.cut(
          s.substr(0, valid), special, [this](auto plain) { normalize(plain); }, token());
      s.remove_prefix(valid);
      std::size_t broken = 0;
      while (broken < s.size()) {
        const Utf8Char c = decode_utf8(s.substr(broken));
        if (c.kind == Utf8Char::kValid) break;
        broken += c.length;
      }
      if (broken > 0) piece(s.substr(0, broken));
      s.remove_prefix(broken);
    }
  }

 private:
  std::function<void(std::int32_t)> token() {
    return [this](std::int32_t id) { out.push_back(id); };
  }
  void normalize(std::string_view s) {
    const std::string composed = t.nfc ? nibble::nfc(s) : std::string();
    t.normalized.cut(
        t.nfc ? composed : s, special, [this](auto plain) { split(plain); }, token());
  }
  void split(std::string_view s) {
    if (!t.prefix_space || s.front() == ' ') return t.pretokenizer.split(s, piece);
    t.pretokenizer.split(" " + std::string(s), piece);
  }
};

Tokenizer::Tokenizer(TokenizerSpec spec) : impl_(std::make_unique<Impl>(std::move(spec))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::int32_t Tokenizer::size() const { return static_cast<std::int32_t>(impl_->tokens.size()); }

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool parse_special,
                                            bool add_special) const {
  require(text.size() <= kMaxText, "a text of {} bytes: at most {} can be tokenized at a time",
          text.size(), kMaxText);
  std::vector<std::int32_t> out;
  if (add_special) out = impl_->prefix_ids;
  Impl::Run{*impl_, parse_special, out}.text(text);
  if (add_special) out.insert(out.end(), impl_->suffix_ids.begin(), impl_->suffix_ids.end());
  return out;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const std::int32_t id : ids) {
    const Impl::Token& token = impl_->token(id);
    if (!(skip_special && token.special)) bytes += token.bytes;
  }
  return bytes;
}

std::string Tokenizer::token_bytes(std::int32_t id, bool skip_special) const {
  return decode({&id, 1}, skip_special);
}

bool Tokenizer::is_special(std::int32_t id) const {
  return is_defined(id) && impl_->tokens[id].special;
}

bool Tokenizer::is_defined(std::int32_t id) const {
  return id >= 0 && id < size() && impl_->tokens[id].defined;
}

std::int32_t Tokenizer::find(std::string_view token_text) const {
  const auto it = impl_->ids.find(token_text);
  return it == impl_->ids.end() ? -1 : it->second;
}

}  // namespace nibble
