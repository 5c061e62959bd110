#include "checkpoint/hybrid_config.h"

#include "base/error.h"
#include "checkpoint/limits.h"
#include "checkpoint/names.h"

namespace nibble {

bool is_hybrid(std::string_view architecture) { return architecture.starts_with("qwen3_5"); }

void read_hybrid(const JsonFields& c, ModelConfig& m) {
  m.attends.assign(static_cast<std::size_t>(m.layers), false);
  if (const Json* types = c.find("layer_types")) {
    require(types->is_array() && types->size() == m.attends.size(),
            "{}: \"layer_types\" must be a list of {} names", c.where(), m.layers);
    for (std::size_t i = 0; i < types->size(); ++i) {
      const Json& t = (*types)[i];
      require(t == "linear_attention" || t == "full_attention",
              "{}: the layer type {} is not supported", c.where(), quote(t.dump()));
      m.attends[i] = t == "full_attention";
    }
  } else {
    const std::int64_t every = c.integer_or("full_attention_interval", 4, 1, limits::kLayers);
    for (std::int64_t i = 0; i < m.layers; ++i)
      m.attends[static_cast<std::size_t>(i)] = (i + 1) % every == 0;
  }
  require(c.boolean_or("attn_output_gate", true),
          "{}: attention without an output gate (\"attn_output_gate\") is not supported",
          c.where());
  const std::string gate = c.string_or("output_gate_type", "swish");
  require(gate == "swish" || gate == "silu", "{}: the output gate {} is not supported (swish is)",
          c.where(), quote(gate));
  m.delta = {.key_heads = c.integer("linear_num_key_heads", 1, limits::kHeads),
             .value_heads = c.integer("linear_num_value_heads", 1, limits::kHeads),
             .key_dim = c.integer("linear_key_head_dim", 1, limits::kHeadDim),
             .value_dim = c.integer("linear_value_head_dim", 1, limits::kHeadDim),
             .conv_kernel = c.integer("linear_conv_kernel_dim", 1, 64)};
  if (m.architecture == "qwen3_5_moe")
    m.moe = {
        .experts = c.integer("num_experts", 1, limits::kExperts),
        .top_k = c.integer("num_experts_per_tok", 1, limits::kExperts),
        .intermediate = c.integer("moe_intermediate_size", 1, limits::kWidth),
        .shared_intermediate = c.integer("shared_expert_intermediate_size", 1, limits::kWidth)};
  check_hybrid(m, c.where());
}

void set_rotary(double factor, std::string_view where, ModelConfig& m) {
  m.rotary = static_cast<std::int64_t>(factor * static_cast<double>(m.head_dim));
  require(m.rotary > 0 && m.rotary % 2 == 0 && m.rotary <= m.head_dim,
          "{}: RoPE over {} of {} dimensions is not possible", where, m.rotary, m.head_dim);
}

void check_hybrid(const ModelConfig& m, std::string_view where) {
  require(m.delta.value_heads % m.delta.key_heads == 0,
          "{}: {} value heads are no multiple of {} key heads", where, m.delta.value_heads,
          m.delta.key_heads);
  require(m.delta.channels() <= limits::kWidth, "{}: a delta net of {} channels is too wide", where,
          m.delta.channels());
  require(m.moe.top_k <= m.moe.experts, "{}: {} of {} experts a token are not possible", where,
          m.moe.top_k, m.moe.experts);
}

}  // namespace nibble
