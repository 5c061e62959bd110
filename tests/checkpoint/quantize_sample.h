// A small model to quantise, and what its tests look at.
#pragma once

#include <functional>
#include <random>

#include "builders.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/json.h"
#include "checkpoint/quantize.h"

namespace nibble::quantize_sample {

namespace fs = std::filesystem;
using test::SafetensorsFile;
using test::TempDir;

inline constexpr std::int64_t kHidden = 64, kInner = 96;
inline constexpr std::int64_t kVocab = 4500;  // more rows than are converted at once
inline const std::string kLayer = "model.layers.0.";

inline std::vector<float> gaussian(unsigned seed, std::int64_t n) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.05f);
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& v : x) v = normal(random);
  return x;
}

struct Matrix {
  std::string name;
  std::int64_t n, k;
};

inline std::vector<Matrix> linears() {
  return {{kLayer + "self_attn.q_proj.weight", kHidden, kHidden},
          {kLayer + "self_attn.k_proj.weight", 32, kHidden},
          {kLayer + "self_attn.v_proj.weight", 32, kHidden},
          {kLayer + "self_attn.o_proj.weight", kHidden, kHidden},
          {kLayer + "mlp.gate_proj.weight", kInner, kHidden},
          {kLayer + "mlp.up_proj.weight", kInner, kHidden},
          {kLayer + "mlp.down_proj.weight", kHidden, kInner}};
}

// A one-layer Llama as a Hugging Face directory. `damage` may change a tensor's values.
inline void write_model(
    const TempDir& dir, bool tied,
    const std::function<void(const std::string&, std::vector<float>&)>& damage = {},
    bool embedding_f32 = false, bool store_head = false) {
  fs::create_directory(dir.path() / "src");
  dir.write("src/config.json",
            fmt::format(
                R"({{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":64,
          "intermediate_size":96,"num_hidden_layers":1,"num_attention_heads":2,
          "num_key_value_heads":1,"vocab_size":4500,"max_position_embeddings":128,
          "rms_norm_eps":1e-05,"tie_word_embeddings":{},"torch_dtype":"bfloat16","my_key":[1,2]}})",
                tied));
  dir.write("src/generation_config.json", R"({"eos_token_id":3})");
  dir.write("src/tokenizer_config.json", R"({"chat_template":"{{ messages }}"})");
  SafetensorsFile file;
  unsigned seed = 0;
  const auto matrix = [&](const Matrix& m, bool f32 = false) {
    auto x = gaussian(++seed, m.n * m.k);
    if (damage) damage(m.name, x);
    file.add(m.name, f32 ? "F32" : "BF16", {m.n, m.k}, f32 ? test::raw(x) : test::bfloats(x));
  };
  matrix({"model.embed_tokens.weight", kVocab, kHidden}, embedding_f32);
  for (const Matrix& m : linears()) matrix(m);
  if (!tied || store_head) matrix({"lm_head.weight", kVocab, kHidden});
  file.add(kLayer + "input_layernorm.weight", "F32", {kHidden}, test::raw(gaussian(91, kHidden)));
  file.add(kLayer + "post_attention_layernorm.weight", "BF16", {kHidden},
           test::bfloats(gaussian(92, kHidden)));
  file.add("model.norm.weight", "F16", {kHidden}, test::halves(gaussian(93, kHidden)));
  dir.write("src/model.safetensors", file.build());
}

inline QuantizeReport run(const TempDir& dir, const QuantizeOptions& o = {.group = 32},
                          const std::string& target = "out") {
  return quantize(dir.path() / "src", dir.path() / target, o);
}

inline std::vector<float> values(const Checkpoint& c, const Matrix& m) {
  return dequantise(*c.weight(m.name, m.n, m.k), 0, m.n);
}

inline WeightRows rows(const Checkpoint& c, const Matrix& m) {
  WeightRows r;
  c.weight(m.name, m.n, m.k)->read(0, m.n, r);
  return r;
}

inline std::string stored_type(const Checkpoint& c, const std::string& name) {
  for (const TensorInfo& t : c.tensors())
    if (t.name == name) return t.stored_type;
  return "";
}

inline Json config_of(const fs::path& dir) {
  return parse_json_object(read_file(dir / "config.json"), "config");
}

// Nothing but the source is left: no target, no temporary.
inline void expect_no_trace(const TempDir& dir) {
  for (const auto& e : fs::directory_iterator(dir.path())) EXPECT_EQ(e.path().filename(), "src");
}

}  // namespace nibble::quantize_sample
