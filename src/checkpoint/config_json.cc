#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "checkpoint/config.h"
#include "checkpoint/hybrid_config.h"
#include "checkpoint/json.h"
#include "checkpoint/limits.h"
#include "checkpoint/names.h"

namespace nibble {
namespace {

struct Architecture {
  std::string_view hf_class, model_type, canonical;
};
constexpr std::array kArchitectures = {
    Architecture{"LlamaForCausalLM", "llama", "llama"},
    Architecture{"MistralForCausalLM", "mistral", "llama"},
    Architecture{"Qwen2ForCausalLM", "qwen2", "qwen2"},
    Architecture{"Qwen3ForCausalLM", "qwen3", "qwen3"},
    Architecture{"Qwen3_5ForConditionalGeneration", "qwen3_5", "qwen3_5"},
    Architecture{"Qwen3_5ForCausalLM", "qwen3_5_text", "qwen3_5"},
    Architecture{"Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", "qwen3_5_moe"},
    Architecture{"Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", "qwen3_5_moe"},
};

const Architecture& find_architecture(const JsonFields& c) {
  std::string found = c.string_or("model_type", "");
  if (const Json* list = c.find("architectures"); list != nullptr && list->is_array()) {
    for (const Json& a : *list) {
      if (!a.is_string()) continue;
      found = a.get<std::string>();
      for (const Architecture& k : kArchitectures)
        if (k.hf_class == found) return k;
    }
  } else {
    for (const Architecture& k : kArchitectures)
      if (k.model_type == found) return k;
  }
  std::string known;
  for (const Architecture& k : kArchitectures) known += fmt::format(" {}", k.hf_class);
  fail("{}: the architecture {} is not supported; these are:{}", c.where(), quote(found), known);
}

// rope_theta and scaling: at the top level with "rope_scaling", or all in "rope_parameters"
// (transformers 5).
void read_rope(const JsonFields& c, ModelConfig& m) {
  const bool hybrid = is_hybrid(m.architecture);
  m.rope_theta = c.number_or("rope_theta", 10000, 1, 1e12);
  double rotated = c.number_or("partial_rotary_factor", hybrid ? kHybridRotary : 1, 0, 1);
  for (const std::string_view key : {"rope_scaling", "rope_parameters"}) {
    if (c.find(key) == nullptr) continue;
    const JsonFields r = c.object(key);
    m.rope_theta = r.number_or("rope_theta", m.rope_theta, 1, 1e12);
    rotated = r.number_or("partial_rotary_factor", rotated, 0, 1);
    const std::string type = r.string_or("rope_type", r.string_or("type", "default"));
    if (type == "default") continue;
    require(type == "llama3", "{}: the RoPE scaling {} is not supported (default, llama3 are)",
            r.where(), quote(type));
    RopeScaling s;
    s.factor = r.number("factor", 1, 1e6);
    s.low_freq_factor = r.number("low_freq_factor", 1e-6, 1e6);
    s.high_freq_factor = r.number("high_freq_factor", 1e-6, 1e6);
    require(s.high_freq_factor > s.low_freq_factor,
            "{}: \"high_freq_factor\" must be greater than \"low_freq_factor\"", r.where());
    s.original_max_position = r.integer("original_max_position_embeddings", 1, limits::kPositions);
    m.rope_scaling = s;
  }
  require(hybrid || rotated == 1, "{}: \"partial_rotary_factor\" other than 1 is not supported",
          c.where());
  if (hybrid) set_rotary(rotated, c.where(), m);
}

// Attention over a window gives other answers than full attention once the context exceeds it.
void refuse_sliding_window(const JsonFields& c, const Architecture& arch, std::int64_t positions) {
  bool sliding = c.boolean_or("use_sliding_window", arch.model_type == "mistral");
  if (const Json* types = c.find("layer_types")) {
    sliding = false;
    require(types->is_array(), "{}: \"layer_types\" must be a list", c.where());
    for (const Json& t : *types) {
      const std::string type = t.is_string() ? t.get<std::string>() : t.dump();
      sliding = sliding || type == "sliding_attention";
      require(type == "full_attention" || type == "sliding_attention",
              "{}: the layer type {} is not supported", c.where(), quote(type));
    }
  }
  if (!sliding || c.find("sliding_window") == nullptr) return;
  require(c.integer("sliding_window", 1, INT64_MAX) >= positions,
          "{}: sliding-window attention is not supported (\"sliding_window\" is less than "
          "\"max_position_embeddings\"); lower the latter to run within the window",
          c.where());
}

void add_ids(const JsonFields& c, std::string_view key, std::vector<std::int32_t>& ids) {
  const Json* v = c.find(key);
  if (v == nullptr) return;
  const auto add = [&](const Json& id) {
    require(id.is_number_unsigned() && id.get<std::uint64_t>() < limits::kVocab,
            "{}: \"{}\" must be a token id or a list of them, got {}", c.where(), key,
            quote(v->dump()));
    const auto i = id.get<std::int32_t>();
    if (std::find(ids.begin(), ids.end(), i) == ids.end()) ids.push_back(i);
  };
  if (v->is_array())
    std::for_each(v->begin(), v->end(), add);
  else
    add(*v);
}

}  // namespace

ModelConfig parse_config_json(std::string_view json, std::string_view where) {
  const Json root = parse_json_object(json, where);
  const JsonFields top(root, std::string(where));
  const Architecture& arch = find_architecture(top);
  // A multimodal wrapper keeps the decoder's fields one level down.
  const JsonFields c = top.find("text_config") != nullptr ? top.object("text_config") : top;
  ModelConfig m;
  m.architecture = arch.canonical;
  m.hidden = c.integer("hidden_size", 1, limits::kWidth);
  m.layers = c.integer("num_hidden_layers", 1, limits::kLayers);
  m.heads = c.integer("num_attention_heads", 1, limits::kHeads);
  m.kv_heads = c.integer_or("num_key_value_heads", m.heads, 1, m.heads);
  const bool hybrid = is_hybrid(m.architecture);
  if (hybrid) read_hybrid(c, m);
  if (m.moe.experts == 0) m.intermediate = c.integer("intermediate_size", 1, limits::kWidth);
  m.vocab = c.integer("vocab_size", 1, limits::kVocab);
  m.max_position = c.integer_or("max_position_embeddings", 2048, 1, limits::kPositions);
  m.head_dim = c.integer_or("head_dim", m.hidden / m.heads, 1, limits::kHeadDim);
  m.rms_eps = c.number_or("rms_norm_eps", 1e-6, 0, 1);
  m.tied_embedding =
      c.boolean_or("tie_word_embeddings", top.boolean_or("tie_word_embeddings", false));
  const std::string act = c.string_or("hidden_act", "silu");
  require(act == "silu" || act == "swish", "{}: the activation {} is not supported (silu is)",
          where, quote(act));
  require(!c.boolean_or("mlp_bias", false), "{}: \"mlp_bias\" is not supported", where);
  const bool bias = c.boolean_or("attention_bias", false);
  m.qkv_bias = bias || m.architecture == "qwen2";
  m.o_bias = bias && m.architecture != "qwen2";
  m.qk_norm = m.architecture == "qwen3" || hybrid;
  require(!hybrid || !bias, "{}: \"attention_bias\" is not supported", where);
  read_rope(c, m);
  if (!hybrid) refuse_sliding_window(c, arch, m.max_position);
  limits::check_heads(m, where);
  return m;
}

GenerationConfig parse_generation_json(std::string_view generation_json,
                                       std::string_view config_json, std::string_view where) {
  GenerationConfig g;
  std::vector<std::int32_t> bos;
  if (!generation_json.empty()) {
    const Json root = parse_json_object(generation_json, where);
    const JsonFields c(root, std::string(where));
    add_ids(c, "eos_token_id", g.eos);
    add_ids(c, "bos_token_id", bos);
    const auto number = [&](std::string_view key, double high, std::optional<double>& out) {
      if (c.find(key) != nullptr) out = c.number(key, 0, high);
    };
    number("temperature", 1000, g.temperature);
    number("top_p", 1, g.top_p);
    number("min_p", 1, g.min_p);
    number("repetition_penalty", 1000, g.repetition_penalty);
    require(!g.repetition_penalty || *g.repetition_penalty > 0,
            "{}: \"repetition_penalty\" must be greater than 0", where);
    if (c.find("top_k") != nullptr) g.top_k = c.integer("top_k", 0, limits::kVocab);
    g.do_sample = c.boolean_or("do_sample", false);
  }
  if (!config_json.empty()) {
    const Json root = parse_json_object(config_json, where);
    const JsonFields c(root, std::string(where));
    add_ids(c, "eos_token_id", g.eos);
    if (bos.empty()) add_ids(c, "bos_token_id", bos);
    if (c.find("text_config") != nullptr) {
      const JsonFields text = c.object("text_config");
      add_ids(text, "eos_token_id", g.eos);
      if (bos.empty()) add_ids(text, "bos_token_id", bos);
    }
  }
  if (!bos.empty()) g.bos = bos.front();
  return g;
}

}  // namespace nibble
