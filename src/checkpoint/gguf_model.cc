#include "checkpoint/gguf_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "base/error.h"
#include "checkpoint/gguf_hybrid.h"
#include "checkpoint/limits.h"
#include "checkpoint/names.h"
#include "text/unicode.h"

namespace nibble {
namespace {

constexpr std::array<std::string_view, 5> kArchitectures = {"llama", "qwen2", "qwen3", "qwen35",
                                                            "qwen35moe"};

// Token types of tokenizer.ggml.token_type.
enum : std::int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// Control tokens that end a turn, whatever ids the metadata names.
constexpr std::array<std::string_view, 8> kEndOfTurn = {
    "<|im_end|>",      "<|eot_id|>", "<|eom_id|>",    "<|endoftext|>",
    "<|end_of_text|>", "<|end|>",    "<end_of_turn>", "</s>"};

// Keys under the architecture's own prefix.
class ArchKeys {
 public:
  ArchKeys(const Gguf& file, std::string arch) : file_(file), arch_(std::move(arch)) {}
  std::string key(std::string_view name) const { return fmt::format("{}.{}", arch_, name); }
  bool has(std::string_view name) const { return file_.has(key(name)); }
  std::int64_t integer(std::string_view name, std::int64_t high) const {
    const auto v = file_.integer(key(name), 1, high);
    require(v.has_value(), "{}: the key {} is missing", file_.where(), key(name));
    return *v;
  }
  std::int64_t integer_or(std::string_view name, std::int64_t fallback, std::int64_t high) const {
    return file_.integer(key(name), 0, high).value_or(fallback);
  }
  double number_or(std::string_view name, double fallback, double low, double high) const {
    const double v = file_.number(key(name)).value_or(fallback);
    require(v >= low && v <= high, "{}: {} must be from {} to {}, got {}", file_.where(), key(name),
            low, high, v);
    return v;
  }
  // Throws Error when `name` is set to anything but `neutral`.
  void refuse(std::string_view name, double neutral, std::string_view what) const {
    if (has(name))
      require(file_.number(key(name)) == neutral, "{}: {} ({}) is not supported", file_.where(),
              what, key(name));
  }

 private:
  const Gguf& file_;
  std::string arch_;
};

void read_rope(const Gguf& file, const ArchKeys& keys, ModelConfig& m) {
  m.rope_theta = keys.number_or("rope.freq_base", 10000, 1, 1e12);
  const std::string type(file.string(keys.key("rope.scaling.type")).value_or("none"));
  const bool neutral = keys.number_or("rope.scaling.factor", 1, 0, 1e6) == 1;
  require(type == "none" || (type == "linear" && neutral),
          "{}: the RoPE scaling {} is not supported (none, and llama3 as rope_freqs.weight, are)",
          file.where(), quote(type));
  keys.refuse("rope.scale_linear", 1, "RoPE scaling");
  const auto rotated = keys.integer_or("rope.dimension_count", m.head_dim, limits::kHeadDim);
  require(rotated == m.head_dim || m.hybrid(), "{}: RoPE over {} of {} dimensions is not supported",
          file.where(), rotated, m.head_dim);
  const GgufTensor* factors = file.tensor("rope_freqs.weight");
  if (factors == nullptr) return;
  require(
      factors->rank == 1 && factors->columns() == m.head_dim / 2 && factors->type->name == "F32",
      "{}: tensor \"rope_freqs.weight\": expected F32 [{}]", file.where(), m.head_dim / 2);
  m.rope_factors.resize(static_cast<std::size_t>(m.head_dim / 2));
  decode_blocks(*factors->type, factors->data.data(), factors->columns(), m.rope_factors.data());
  for (const float f : m.rope_factors)
    require(std::isfinite(f) && f > 0, "{}: tensor \"rope_freqs.weight\": {} is no RoPE factor",
            file.where(), f);
}

std::optional<std::int32_t> token_id(const Gguf& file, std::string_view name) {
  const auto id = file.integer(fmt::format("tokenizer.ggml.{}_token_id", name), -1, UINT32_MAX);
  // -1, in 32 bits of either sign: no such token.
  if (!id || *id == -1 || *id == UINT32_MAX) return std::nullopt;
  require(*id < limits::kVocab, "{}: tokenizer.ggml.{}_token_id is {}", file.where(), name, *id);
  return static_cast<std::int32_t>(*id);
}

// Whether texts begin with BOS when the file does not say: its Llama 3 pre-tokenizers imply it.
bool bos_by_default(std::string_view pre) {
  return pre == "llama3" || pre == "llama-v3" || pre == "llama-bpe";
}

}  // namespace

ModelConfig gguf_config(const Gguf& file) {
  const std::string arch(file.string("general.architecture").value_or(""));
  std::string known;
  for (const auto a : kArchitectures) known += fmt::format(" {}", a);
  require(std::find(kArchitectures.begin(), kArchitectures.end(), arch) != kArchitectures.end(),
          "{}: the architecture {} is not supported; these are:{}", file.where(), quote(arch),
          known);
  const auto split = file.integer("split.count", 0, UINT16_MAX).value_or(1);
  require(split <= 1, "{}: one of {} parts; join them with llama-gguf-split --merge", file.where(),
          split);
  const ArchKeys keys(file, arch);
  ModelConfig m;
  m.architecture = arch;
  m.hidden = keys.integer("embedding_length", limits::kWidth);
  const bool hybrid = is_hybrid_gguf(arch);
  m.layers = keys.integer("block_count", limits::kLayers);
  if (hybrid) m.layers -= prediction_layers(file, arch);
  require(m.layers > 0, "{}: a model of {} layers", file.where(), m.layers);
  m.heads = keys.integer("attention.head_count", limits::kHeads);
  m.kv_heads = keys.has("attention.head_count_kv")
                   ? keys.integer("attention.head_count_kv", m.heads)
                   : m.heads;
  if (arch != "qwen35moe") m.intermediate = keys.integer("feed_forward_length", limits::kWidth);
  m.max_position = keys.integer("context_length", limits::kPositions);
  m.head_dim = keys.integer_or("attention.key_length", m.hidden / m.heads, limits::kHeadDim);
  require(keys.integer_or("attention.value_length", m.head_dim, limits::kHeadDim) == m.head_dim,
          "{}: value heads of another size than key heads are not supported", file.where());
  limits::check_heads(m, file.where());
  m.rms_eps = keys.number_or("attention.layer_norm_rms_epsilon", 1e-6, 0, 1);
  if (hybrid)
    read_hybrid(file, arch, m);
  else
    keys.refuse("expert_count", 0, "a mixture of experts");
  const auto window = keys.integer_or("attention.sliding_window", 0, INT64_MAX);
  require(window == 0 || window >= m.max_position, "{}: sliding-window attention is not supported",
          file.where());
  read_rope(file, keys, m);

  const GgufTensor* embedding = file.tensor("token_embd.weight");
  require(embedding != nullptr && embedding->rank == 2 && embedding->columns() == m.hidden,
          "{}: tensor \"token_embd.weight\" is missing or not [vocabulary, {}]", file.where(),
          m.hidden);
  m.vocab = embedding->shape[0];
  require(m.vocab <= limits::kVocab, "{}: a vocabulary of {} is too large", file.where(), m.vocab);
  m.tied_embedding = file.tensor("output.weight") == nullptr;
  if (hybrid) return m;
  m.qkv_bias = file.tensor("blk.0.attn_q.bias") != nullptr;
  m.o_bias = file.tensor("blk.0.attn_output.bias") != nullptr;
  m.qk_norm = file.tensor("blk.0.attn_q_norm.weight") != nullptr;
  return m;
}

GenerationConfig gguf_generation(const Gguf& file) {
  GenerationConfig g;
  const auto add = [&](std::int32_t id) {
    if (std::find(g.eos.begin(), g.eos.end(), id) == g.eos.end()) g.eos.push_back(id);
  };
  for (const std::string_view name : {"eos", "eot", "eom"})
    if (const auto id = token_id(file, name)) add(*id);
  const auto tokens = file.strings("tokenizer.ggml.tokens");
  const auto types = file.integers("tokenizer.ggml.token_type");
  for (std::size_t i = 0; i < std::min(tokens.size(), types.size()); ++i)
    if (types[i] == kControl &&
        std::find(kEndOfTurn.begin(), kEndOfTurn.end(), tokens[i]) != kEndOfTurn.end())
      add(static_cast<std::int32_t>(i));
  g.bos = token_id(file, "bos").value_or(-1);

  const auto number = [&](std::string_view name, double high, std::optional<double>& out) {
    out = file.number(fmt::format("general.sampling.{}", name));
    require(!out || (*out >= 0 && *out <= high), "{}: general.sampling.{} must be from 0 to {}",
            file.where(), name, high);
  };
  number("temp", 1000, g.temperature);
  number("top_p", 1, g.top_p);
  number("min_p", 1, g.min_p);
  number("penalty_repeat", 1000, g.repetition_penalty);
  require(g.repetition_penalty != 0, "{}: general.sampling.penalty_repeat must be greater than 0",
          file.where());
  g.top_k = file.integer("general.sampling.top_k", 0, limits::kVocab);
  g.do_sample = g.temperature.value_or(0) > 0;
  return g;
}

std::optional<TokenizerSpec> gguf_tokenizer(const Gguf& file) {
  const auto model = file.string("tokenizer.ggml.model");
  if (!model || *model == "none") return std::nullopt;
  require(*model == "gpt2", "{}: the tokenizer {} is not supported; byte-level BPE (\"gpt2\") is",
          file.where(), quote(*model));
  const auto tokens = file.strings("tokenizer.ggml.tokens");
  const auto types = file.integers("tokenizer.ggml.token_type");
  require(!tokens.empty() && (types.empty() || types.size() == tokens.size()),
          "{}: {} tokens with {} token types", file.where(), tokens.size(), types.size());
  TokenizerSpec spec;
  spec.vocab.resize(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    require(is_valid_utf8(tokens[i]), "{}: token {} is not UTF-8", file.where(), i);
    const std::int64_t type = types.empty() ? kNormal : types[i];
    if (tokens[i].empty() || type == kUnused) continue;  // "": an id that is never produced
    if (type == kControl || type == kUserDefined || type == kUnknown) {
      AddedToken a;
      a.id = static_cast<std::int32_t>(i);
      a.text = tokens[i];
      a.special = type != kUserDefined;
      spec.added.push_back(std::move(a));
    } else {
      spec.vocab[i] = tokens[i];
    }
  }
  for (const std::string_view merge : file.strings("tokenizer.ggml.merges")) {
    const auto space = merge.find(' ');  // none inside a token: byte-level BPE spells it otherwise
    require(space != std::string_view::npos && space > 0 && space + 1 < merge.size() &&
                is_valid_utf8(merge),
            "{}: the merge {} is not two tokens", file.where(), quote(merge));
    spec.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  const std::string pre(file.string("tokenizer.ggml.pre").value_or("default"));
  try {
    set_pretokenizer(spec, pre);
  } catch (const Error& e) {
    fail("{}: {}", file.where(), e.what());
  }
  spec.add_prefix_space = file.boolean("tokenizer.ggml.add_space_prefix").value_or(false);
  const auto surround = [&](std::string_view name, bool by_default,
                            std::vector<std::int32_t>& ids) {
    const auto flag = file.boolean(fmt::format("tokenizer.ggml.add_{}_token", name));
    if (!flag.value_or(by_default)) return;
    const auto id = token_id(file, name);
    require(id && static_cast<std::size_t>(*id) < tokens.size(),
            "{}: tokenizer.ggml.add_{}_token is set, but its id is missing", file.where(), name);
    ids = {*id};
  };
  surround("bos", bos_by_default(pre), spec.prefix_ids);
  surround("eos", false, spec.suffix_ids);
  return spec;
}

std::string gguf_to_hf_name(std::string_view name) {
  using Names = std::pair<std::string_view, std::string_view>;
  static constexpr Names model[] = {
      {"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};
  static constexpr Names layer[] = {
      {"attn_norm", "input_layernorm"},    {"ffn_norm", "post_attention_layernorm"},
      {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},
      {"attn_v", "self_attn.v_proj"},      {"attn_output", "self_attn.o_proj"},
      {"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"},
      {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"}};
  const auto dot = name.rfind('.');
  if (dot == std::string_view::npos) return "";
  const std::string_view part = name.substr(dot + 1);
  std::string_view stem = name.substr(0, dot);
  if (part != "weight" && part != "bias") return "";
  if (!stem.starts_with("blk.")) {
    for (const auto& [gguf, hf] : model)
      if (stem == gguf && part == "weight") return fmt::format("{}.{}", hf, part);
    return "";
  }
  stem.remove_prefix(4);
  const auto end = stem.find('.');
  const int index = layer_number(stem.substr(0, end));
  if (index < 0 || end == std::string_view::npos) return "";
  for (const auto& [gguf, hf] : layer)
    // Biases exist on the attention projections alone.
    if (stem.substr(end + 1) == gguf && (part == "weight" || hf.ends_with("_proj")) &&
        (part == "weight" || hf.starts_with("self_attn")))
      return fmt::format("model.layers.{}.{}.{}", index, hf, part);
  return "";
}

}  // namespace nibble
