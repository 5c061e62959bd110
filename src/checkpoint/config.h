// A model's configuration, from config.json or GGUF metadata, validated.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct RopeScaling {  // "llama3" only; anything else is refused at load
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  std::int64_t original_max_position = 8192;
};

struct DeltaNetConfig {  // the gated delta net layers of a hybrid model
  std::int64_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0, conv_kernel = 0;
  std::int64_t key_width() const { return key_heads * key_dim; }
  std::int64_t value_width() const { return value_heads * value_dim; }
  std::int64_t channels() const { return 2 * key_width() + value_width(); }
};

struct MoeConfig {  // a mixture of experts in place of every MLP; experts == 0: none
  std::int64_t experts = 0, top_k = 0, intermediate = 0, shared_intermediate = 0;
};

struct ModelConfig {
  std::string architecture;  // canonical: "llama", "qwen2", "qwen3", "qwen3_5", "qwen3_5_moe"
  std::int64_t hidden = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0;
  std::int64_t vocab = 0, max_position = 0;
  double rms_eps = 1e-6, rope_theta = 10000;
  std::optional<RopeScaling> rope_scaling = {};
  std::vector<float> rope_factors =
      {};  // GGUF rope_freqs.weight: [head_dim/2], divides the frequencies
  bool tied_embedding = false;
  bool qkv_bias = false, o_bias = false, qk_norm = false;
  std::int64_t rotary = 0;         // dims of a head that RoPE turns; 0: all
  std::vector<bool> attends = {};  // [layers] attention, else a gated delta net; empty: all attend
  DeltaNetConfig delta = {};
  MoeConfig moe = {};

  bool hybrid() const { return !attends.empty(); }
  std::int64_t rotary_dims() const { return rotary > 0 ? rotary : head_dim; }
  std::int64_t attention_layers() const {
    return hybrid() ? std::count(attends.begin(), attends.end(), true) : layers;
  }
};

struct GenerationConfig {         // generation_config.json, or the GGUF's metadata
  std::vector<std::int32_t> eos;  // every id that ends a turn (union of all sources)
  std::int32_t bos = -1;          // -1: none
  // Unset: the file gives none and the command's own defaults hold.
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::int64_t> top_k;
  bool do_sample = false;
};

// Parses config.json's text. `where` names the file in errors. An unsupported architecture, a
// missing field, an impossible size: Error naming the field and, for architectures, what runs.
ModelConfig parse_config_json(std::string_view json, std::string_view where);
GenerationConfig parse_generation_json(std::string_view generation_json,
                                       std::string_view config_json, std::string_view where);

}  // namespace nibble
