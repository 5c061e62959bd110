// tokenizer.json (Hugging Face `tokenizers`) to TokenizerSpec: byte-level BPE only. What would
// change the ids and is not implemented is refused by name; truncation and padding, which are
// settings of a batch call, are ignored as transformers does.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/tokenizer_patterns.h"

namespace nibble {
namespace {

using nlohmann::json;

constexpr int kMaxNesting = 8;  // of Sequence steps

class Reader {
 public:
  explicit Reader(std::string_view where) : where_(where) {}

  TokenizerSpec read(std::string_view text) {
    const json root = parse(text);
    if (!root.is_object()) bad("it is not a JSON object");
    const json& model = member(root, "model", json::value_t::object);
    this->model(model);
    added(root);
    normalizer(optional(root, "normalizer"), 0);
    pre_tokenizer(optional(root, "pre_tokenizer"), 0);
    if (!byte_level_) unsupported("a pre_tokenizer without ByteLevel");
    post_processor(optional(root, "post_processor"), 0);
    decoder(optional(root, "decoder"), 0);
    return std::move(spec_);
  }

 private:
  template <class... A>
  [[noreturn]] void bad(fmt::format_string<A...> f, A&&... a) const {
    fail("{}: {}; get the file again, or export it with Hugging Face tokenizers", where_,
         fmt::format(f, std::forward<A>(a)...));
  }
  [[noreturn]] void unsupported(std::string_view what) const {
    fail(
        "{}: {} is not supported; Nibble reads byte-level BPE (normalizer NFC; pre-tokenizers "
        "Split, Digits, ByteLevel)",
        where_, what);
  }

  json parse(std::string_view text) const {
    try {
      return json::parse(text);
    } catch (const json::exception& e) {
      bad("not valid JSON: {}", e.what());
    }
  }

  // A member; null where it is absent, or `object` is none.
  static const json& optional(const json& object, const char* name) {
    static const json null;
    if (!object.is_object()) return null;
    const auto it = object.find(name);
    return it == object.end() ? null : *it;
  }
  const json& member(const json& object, const char* name, json::value_t type) const {
    const json& value = optional(object, name);
    if (value.type() != type)
      bad("'{}' is missing or not of type {}", name, json(type).type_name());
    return value;
  }
  const std::string& string(const json& object, const char* name) const {
    return member(object, name, json::value_t::string).get_ref<const std::string&>();
  }
  bool flag(const json& object, const char* name, bool fallback) const {
    const json& value = optional(object, name);
    if (value.is_null()) return fallback;
    if (!value.is_boolean()) bad("'{}' is not true or false", name);
    return value.get<bool>();
  }
  std::int32_t id(const json& value, std::string_view of) const {
    if (!value.is_number_unsigned() ||
        value.get<std::uint64_t>() > std::numeric_limits<std::int32_t>::max())
      bad("the id of '{}' is not a 32-bit number", of);
    return value.get<std::int32_t>();
  }
  // Calls step(element) for each element of a Sequence.
  template <class F>
  void sequence(const json& value, const char* list, int depth, F step) const {
    if (depth >= kMaxNesting) bad("Sequence steps are nested more than {} deep", kMaxNesting);
    for (const json& element : member(value, list, json::value_t::array)) step(element);
  }

  void model(const json& m) {
    if (const json& type = optional(m, "type"); !type.is_null() && type != "BPE")
      unsupported(fmt::format("model type {}", type.dump()));
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix", "unk_token"})
      if (const json& value = optional(m, affix); !value.is_null() && value != "")
        unsupported(fmt::format("model.{} {}", affix, value.dump()));
    if (const json& dropout = optional(m, "dropout"); !dropout.is_null() && dropout != 0)
      unsupported("model.dropout");
    if (flag(m, "byte_fallback", false)) unsupported("model.byte_fallback");
    spec_.ignore_merges = flag(m, "ignore_merges", false);

    const json& vocab = member(m, "vocab", json::value_t::object);
    if (vocab.empty()) bad("model.vocab is empty");
    for (const auto& [token, value] : vocab.items()) {
      if (token.empty()) bad("model.vocab has an empty token");
      const auto i = static_cast<std::size_t>(id(value, token));
      // A huge id would cost memory that the file's own size does not justify.
      if (i > 2 * vocab.size() + 65536)
        bad("the id {} of '{}' is far beyond the vocabulary", i, token);
      if (i >= spec_.vocab.size()) spec_.vocab.resize(i + 1);
      if (!spec_.vocab[i].empty()) bad("'{}' and '{}' share the id {}", spec_.vocab[i], token, i);
      spec_.vocab[i] = token;
    }
    for (const json& merge : member(m, "merges", json::value_t::array)) add_merge(merge);
  }

  void add_merge(const json& merge) {  // "a b" or ["a", "b"]
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      spec_.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      return;
    }
    if (!merge.is_string()) bad("merge {} is not a pair of tokens", spec_.merges.size());
    const std::string& text = merge.get_ref<const std::string&>();
    const std::size_t blank = text.find(' ');
    if (blank == std::string::npos || text.find(' ', blank + 1) != std::string::npos)
      bad("merge {} '{}' is not two tokens and a blank", spec_.merges.size(), text);
    spec_.merges.emplace_back(text.substr(0, blank), text.substr(blank + 1));
  }

  void added(const json& root) {
    const json& list = optional(root, "added_tokens");
    if (list.is_null()) return;
    if (!list.is_array()) bad("'added_tokens' is not a list");
    for (const json& t : list) {
      AddedToken token;
      token.text = string(t, "content");
      token.id = id(optional(t, "id"), token.text);
      if (static_cast<std::size_t>(token.id) > 2 * (spec_.vocab.size() + list.size()) + 65536)
        bad("the id {} of '{}' is far beyond the vocabulary", token.id, token.text);
      token.special = flag(t, "special", false);
      token.lstrip = flag(t, "lstrip", false);
      token.rstrip = flag(t, "rstrip", false);
      token.single_word = flag(t, "single_word", false);
      token.normalized = flag(t, "normalized", !token.special);
      spec_.added.push_back(std::move(token));
    }
  }

  void normalizer(const json& n, int depth) {
    if (n.is_null()) return;
    const std::string& type = string(n, "type");
    if (type == "NFC") {
      spec_.nfc = true;
    } else if (type == "Sequence") {
      sequence(n, "normalizers", depth, [&](const json& e) { normalizer(e, depth + 1); });
    } else {
      unsupported(fmt::format("normalizer {}", type));
    }
  }

  void pre_tokenizer(const json& p, int depth) {
    if (p.is_null()) return;
    const std::string& type = string(p, "type");
    if (type == "Sequence") {
      sequence(p, "pretokenizers", depth, [&](const json& e) { pre_tokenizer(e, depth + 1); });
      return;
    }
    if (byte_level_) unsupported(fmt::format("pre_tokenizer {} after ByteLevel", type));
    if (type == "ByteLevel") {
      byte_level_ = true;
      spec_.add_prefix_space = flag(p, "add_prefix_space", true);
      if (spec_.add_prefix_space && !spec_.splits.empty())
        unsupported("ByteLevel with add_prefix_space after another pre_tokenizer");
      if (flag(p, "use_regex", true)) spec_.splits.push_back({std::string(kGpt2), true});
    } else if (type == "Digits") {
      const bool each = flag(p, "individual_digits", false);
      spec_.splits.push_back({std::string(each ? kDigit : kDigits), true});
    } else if (type == "Split") {
      split(p);
    } else {
      unsupported(fmt::format("pre_tokenizer {}", type));
    }
  }

  void split(const json& p) {
    const json& pattern = member(p, "pattern", json::value_t::object);
    TokenizerSpec::Split split;
    if (pattern.contains("Regex")) {
      split.pattern = string(pattern, "Regex");
    } else {
      for (const char c : string(pattern, "String")) {  // a literal: punctuation escaped
        if (std::ispunct(static_cast<unsigned char>(c))) split.pattern += '\\';
        split.pattern += c;
      }
    }
    const std::string& behavior = string(p, "behavior");
    split.isolated = behavior == "Isolated";
    if (!split.isolated && !(behavior == "Removed" && flag(p, "invert", false)))
      unsupported(fmt::format("pre_tokenizer Split with behavior {}", behavior));
    spec_.splits.push_back(std::move(split));
  }

  void post_processor(const json& p, int depth) {
    if (p.is_null()) return;
    const std::string& type = string(p, "type");
    if (type == "Sequence") {
      sequence(p, "processors", depth, [&](const json& e) { post_processor(e, depth + 1); });
    } else if (type == "TemplateProcessing") {
      template_processing(p);
    } else if (type != "ByteLevel") {  // ByteLevel only trims offsets
      unsupported(fmt::format("post_processor {}", type));
    }
  }

  void template_processing(const json& p) {
    std::vector<std::int32_t> before, after;
    int sequences = 0;
    for (const json& piece : member(p, "single", json::value_t::array)) {
      if (piece.is_object() && piece.contains("Sequence")) {
        ++sequences;
        continue;
      }
      const std::string& name = string(member(piece, "SpecialToken", json::value_t::object), "id");
      const json& tokens = member(p, "special_tokens", json::value_t::object);
      const json& token = member(tokens, name.c_str(), json::value_t::object);
      for (const json& value : member(token, "ids", json::value_t::array))
        (sequences == 0 ? before : after).push_back(id(value, name));
    }
    if (sequences != 1) unsupported("a TemplateProcessing without exactly one sequence");
    // A later processor wraps what the earlier ones gave.
    spec_.prefix_ids.insert(spec_.prefix_ids.begin(), before.begin(), before.end());
    spec_.suffix_ids.insert(spec_.suffix_ids.end(), after.begin(), after.end());
  }

  void decoder(const json& d, int depth) const {
    if (d.is_null()) return;
    const std::string& type = string(d, "type");
    if (type == "Sequence") {
      sequence(d, "decoders", depth, [&](const json& e) { decoder(e, depth + 1); });
    } else if (type != "ByteLevel") {
      unsupported(fmt::format("decoder {}", type));
    }
  }

  std::string_view where_;
  TokenizerSpec spec_;
  bool byte_level_ = false;
};

}  // namespace

TokenizerSpec tokenizer_spec_from_json(std::string_view json, std::string_view where) {
  return Reader(where).read(json);
}

}  // namespace nibble
