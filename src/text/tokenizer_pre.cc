// The pre-tokenizers that GGUF files name (tokenizer.ggml.pre), and their patterns.
#include <algorithm>
#include <array>

#include "base/error.h"
#include "text/tokenizer_patterns.h"

namespace nibble {
namespace {

constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen35 =  // admits combining marks in words
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N})"
    R"(| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Pre {
  std::string_view names;  // the canonical one first; separated by blanks
  std::array<std::string_view, 2> patterns;
  bool nfc = false, ignore_merges = false;
};
constexpr Pre kKnown[] = {
    {"smollm starcoder refact", {kDigit, kGpt2}},
    {"gpt-2 gpt2 phi-2", {kGpt2}},
    {"llama-bpe llama3 llama-v3", {kLlama3}, false, true},
    {"qwen2 deepseek-r1-qwen megrez", {kQwen2}, true},
    {"qwen35", {kQwen35}, true},
};

bool names(std::string_view list, std::string_view name) {
  const std::string padded = fmt::format(" {} ", list);
  return !name.empty() && name.find(' ') == std::string_view::npos &&
         padded.find(fmt::format(" {} ", name)) != std::string::npos;
}

}  // namespace

void set_pretokenizer(TokenizerSpec& spec, std::string_view pre_name) {
  const auto* pre = std::find_if(std::begin(kKnown), std::end(kKnown),
                                 [&](const Pre& p) { return names(p.names, pre_name); });
  if (pre == std::end(kKnown)) {
    std::string known;
    for (const auto& p : kKnown) known += fmt::format("{}{}", known.empty() ? "" : " ", p.names);
    fail("pre-tokenizer '{}' (tokenizer.ggml.pre) is not supported; known: {}", pre_name, known);
  }
  spec.splits.clear();
  for (const auto pattern : pre->patterns)
    if (!pattern.empty()) spec.splits.push_back({std::string(pattern), true});
  spec.nfc = pre->nfc;
  spec.ignore_merges = pre->ignore_merges;
}

}  // namespace nibble
