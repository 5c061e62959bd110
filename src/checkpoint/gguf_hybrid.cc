#include "checkpoint/gguf_hybrid.h"

#include <cmath>

#include "base/error.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/hybrid_config.h"
#include "checkpoint/limits.h"
#include "checkpoint/names.h"

namespace nibble {
namespace {

struct Name {
  std::string_view gguf, hf;
};
constexpr Name kLayer[] = {{"attn_norm.weight", "input_layernorm.weight"},
                           {"post_attention_norm.weight", "post_attention_layernorm.weight"},
                           {"attn_qkv.weight", "linear_attn.in_proj_qkv.weight"},
                           {"attn_gate.weight", "linear_attn.in_proj_z.weight"},
                           {"ssm_beta.weight", "linear_attn.in_proj_b.weight"},
                           {"ssm_alpha.weight", "linear_attn.in_proj_a.weight"},
                           {"ssm_a", "linear_attn.A_log"},
                           {"ssm_dt.bias", "linear_attn.dt_bias"},
                           {"ssm_conv1d.weight", "linear_attn.conv1d.weight"},
                           {"ssm_norm.weight", "linear_attn.norm.weight"},
                           {"ssm_out.weight", "linear_attn.out_proj.weight"},
                           {"ffn_gate_inp.weight", "mlp.gate.weight"},
                           {"ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight"},
                           {"ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight"},
                           {"ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight"},
                           {"ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight"}};
// Stacks: Hugging Face's names of their parts, an expert.
struct Stack {
  std::string_view gguf;
  std::vector<std::string_view> parts;
};
const Stack kStacks[] = {{"ffn_gate_exps.weight", {"gate_proj"}},
                         {"ffn_up_exps.weight", {"up_proj"}},
                         {"ffn_down_exps.weight", {"down_proj"}},
                         {"ffn_gate_up_exps.weight", {"gate_proj", "up_proj"}}};

// "blk.3.ssm_a" -> 3 and "ssm_a"; -1 for a tensor of no layer.
std::pair<int, std::string_view> split_name(std::string_view name) {
  if (!name.starts_with("blk.")) return {-1, name};
  name.remove_prefix(4);
  const auto dot = name.find('.');
  if (dot == std::string_view::npos) return {-1, name};
  return {layer_number(name.substr(0, dot)), name.substr(dot + 1)};
}

HeadOrder heads(const ModelConfig& c, std::int64_t first, std::int64_t unit) {
  return {first, unit, c.delta.key_heads, c.delta.value_heads / c.delta.key_heads};
}

}  // namespace

HeadOrder row_order(std::string_view name, const ModelConfig& c) {
  const std::int64_t keys = 2 * c.delta.key_width(), dim = c.delta.value_dim;
  if (name.ends_with(".in_proj_qkv.weight") || name.ends_with(".conv1d.weight"))
    return heads(c, keys, dim);
  if (name.ends_with(".in_proj_z.weight")) return heads(c, 0, dim);
  for (const std::string_view one :
       {".in_proj_a.weight", ".in_proj_b.weight", ".A_log", ".dt_bias"})
    if (name.ends_with(one)) return heads(c, 0, 1);
  return {};
}

HeadOrder column_order(std::string_view name, const ModelConfig& c) {
  return name.ends_with(".linear_attn.out_proj.weight") ? heads(c, 0, c.delta.value_dim)
                                                        : HeadOrder{};
}

void undo_converter(std::string_view name, std::vector<float>& values) {
  const bool unit = name.ends_with("norm.weight") && !name.ends_with(".linear_attn.norm.weight");
  const bool rate = name.ends_with(".A_log");
  for (float& v : values) {
    if (unit) v -= 1;
    if (!rate) continue;
    require(v < 0, "tensor {}: expected rates below 0 (ssm_a is -exp(A_log)), got {}", quote(name),
            v);
    v = static_cast<float>(std::log(-static_cast<double>(v)));
  }
}

int layer_of(std::string_view name) { return split_name(name).first; }

bool is_hybrid_gguf(std::string_view architecture) {
  return architecture == "qwen35" || architecture == "qwen35moe";
}

std::int64_t prediction_layers(const Gguf& file, std::string_view architecture) {
  return file.integer(fmt::format("{}.nextn_predict_layers", architecture), 0, limits::kLayers)
      .value_or(0);
}

void read_hybrid(const Gguf& file, std::string_view architecture, ModelConfig& m) {
  const auto integer = [&](std::string_view name, std::int64_t high) {
    const std::string key = fmt::format("{}.{}", architecture, name);
    const auto v = file.integer(key, 1, high);
    require(v.has_value(), "{}: the key {} is missing", file.where(), key);
    return *v;
  };
  m.architecture = architecture == "qwen35" ? "qwen3_5" : "qwen3_5_moe";
  m.qk_norm = true;
  for (std::int64_t i = 0; i < m.layers; ++i)
    m.attends.push_back(file.tensor(fmt::format("blk.{}.attn_q.weight", i)) != nullptr);
  m.delta = {.key_heads = integer("ssm.group_count", limits::kHeads),
             .value_heads = integer("ssm.time_step_rank", limits::kHeads),
             .key_dim = integer("ssm.state_size", limits::kHeadDim),
             .conv_kernel = integer("ssm.conv_kernel", 64)};
  const std::int64_t inner = integer("ssm.inner_size", limits::kWidth);
  require(inner % m.delta.value_heads == 0, "{}: {}.ssm.inner_size {} is no multiple of {} heads",
          file.where(), architecture, inner, m.delta.value_heads);
  m.delta.value_dim = inner / m.delta.value_heads;
  if (architecture == "qwen35moe")
    m.moe = {.experts = integer("expert_count", limits::kExperts),
             .top_k = integer("expert_used_count", limits::kExperts),
             .intermediate = integer("expert_feed_forward_length", limits::kWidth),
             .shared_intermediate = integer("expert_shared_feed_forward_length", limits::kWidth)};
  const auto rotary =
      file.integer(fmt::format("{}.rope.dimension_count", architecture), 1, limits::kHeadDim);
  set_rotary(
      rotary ? static_cast<double>(*rotary) / static_cast<double>(m.head_dim) : kHybridRotary,
      file.where(), m);
  check_hybrid(m, file.where());
}

std::vector<std::pair<std::string, const GgufTensor*>> hybrid_tensors(
    const GgufTensor& t, std::int64_t experts, std::deque<GgufTensor>& made) {
  const auto [layer, part] = split_name(t.name);
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  if (layer >= 0) {
    for (const Stack& s : kStacks) {
      if (part != s.gguf || t.rank != 3) continue;
      const auto count = static_cast<std::int64_t>(s.parts.size());
      require(t.shape[0] == experts && t.shape[1] % count == 0,
              "tensor {}: expected {} experts of a multiple of {} rows, got {} of {}",
              quote(t.name), experts, count, t.shape[0], t.shape[1]);
      std::vector<std::pair<std::string, const GgufTensor*>> list;
      for (std::int64_t e = 0; e < t.shape[0]; ++e)
        for (std::int64_t i = 0; i < count; ++i) {
          GgufTensor one = t;
          one.rank = 2, one.shape = {t.shape[1] / count, t.shape[2]};
          const auto bytes = static_cast<std::size_t>(one.shape[0] * t.row_bytes());
          one.data = t.data.subspan(static_cast<std::size_t>(e * count + i) * bytes, bytes);
          list.emplace_back(fmt::format("{}mlp.experts.{}.{}.weight", prefix, e,
                                        s.parts[static_cast<std::size_t>(i)]),
                            &made.emplace_back(one));
        }
      return list;
    }
    for (const Name& n : kLayer) {
      if (part != n.gguf) continue;
      const std::string name = prefix + std::string(n.hf);
      GgufTensor shaped = t;
      if (n.gguf == "ssm_conv1d.weight" && t.rank == 2)
        shaped.rank = 3, shaped.shape = {t.shape[0], 1, t.shape[1]};
      else if (n.gguf == "ffn_gate_inp_shexp.weight" && t.rank == 1)
        shaped.rank = 2, shaped.shape = {1, t.shape[0]};
      else
        return {{name, &t}};
      return {{name, &made.emplace_back(shaped)}};
    }
  }
  const std::string name = gguf_to_hf_name(t.name);
  if (name.empty()) return {};
  return {{name, &t}};
}

}  // namespace nibble
