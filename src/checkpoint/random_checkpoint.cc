#include "checkpoint/random_checkpoint.h"

#include <fmt/ranges.h>

#include <cmath>
#include <map>

#include "base/error.h"
#include "base/half.h"
#include "checkpoint/names.h"

namespace nibble {
namespace {

constexpr int kGroup = 128;

// splitmix64: sixteen codes a number.
std::uint64_t next(std::uint64_t& state) {
  std::uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}
std::uint64_t seed_of(std::string_view name) {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

class RandomInt4 final : public WeightSource {
 public:
  RandomInt4(std::string name, std::int64_t n, std::int64_t k)
      : WeightSource(std::move(name), {WeightType::Int4, n, k, kGroup, true}),
        seed_(seed_of(name_)),
        // Codes less 8 spread by 4.6: the sum over K of unit inputs comes out near 1.
        scale_(half_to_float(float_to_half(1 / (4.6f * std::sqrt(static_cast<float>(k)))))) {}
  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override {
    const auto k = static_cast<std::size_t>(format_.k);
    out = {};
    out.codes.resize(static_cast<std::size_t>(count) * k);
    out.scales.assign(static_cast<std::size_t>(count * format_.groups()), scale_);
    for (std::size_t r = 0; r < static_cast<std::size_t>(count); ++r) {
      std::uint64_t state = seed_ + static_cast<std::uint64_t>(row) + r;
      for (std::size_t c = 0; c < k; c += 16) {  // K is a multiple of the group
        std::uint64_t bits = next(state);
        for (std::size_t i = 0; i < 16; ++i, bits >>= 4)
          out.codes[r * k + c + i] = static_cast<std::uint8_t>(bits & 15);
      }
    }
  }

 private:
  std::uint64_t seed_;
  float scale_;
};

class RandomCheckpoint final : public Checkpoint {
 public:
  explicit RandomCheckpoint(const ModelConfig& c) : config_(c) {
    for (TensorShape& t : decoder_tensors(c)) {
      const auto bytes = static_cast<std::uint64_t>(t.parameters()) / 2;
      tensors_.push_back({t.name, t.shape.size() == 2 ? "int4 g128" : "F32", t.shape, bytes, ""});
      by_name_.emplace(std::move(t.name), tensors_.size() - 1);
    }
  }
  std::string format() const override { return "random weights"; }
  const ModelConfig& config() const override { return config_; }
  const GenerationConfig& generation() const override { return generation_; }
  std::vector<TensorInfo> tensors() const override { return tensors_; }
  bool has(std::string_view name) const override { return by_name_.contains(name); }
  std::unique_ptr<WeightSource> weight(std::string_view name, std::int64_t n,
                                       std::int64_t k) const override {
    expect(name, {n, k});
    require(k % kGroup == 0, "random weights: tensor {}: K = {} is no multiple of {}", quote(name),
            k, kGroup);
    return std::make_unique<RandomInt4>(std::string(name), n, k);
  }
  std::vector<float> vector(std::string_view name, std::int64_t size) const override {
    expect(name, {size});
    const bool taps = name.ends_with(".conv1d.weight");
    // Norms that are times 1 + weight stay neutral at 0, as do decay rates and their bias.
    const bool plain_norm = name.ends_with("norm.weight") &&
                            (!config_.hybrid() || name.ends_with(".linear_attn.norm.weight"));
    std::vector<float> v(static_cast<std::size_t>(size), plain_norm ? 1.0f : 0.0f);
    std::uint64_t state = seed_of(name);
    if (taps)
      for (float& x : v) x = static_cast<float>(next(state) >> 40) * 0x1p-24f - 0.25f;
    return v;
  }
  std::optional<TokenizerSpec> tokenizer() const override { return std::nullopt; }
  std::optional<std::string> chat_template() const override { return std::nullopt; }
  std::vector<std::string> notices() const override { return {}; }

 private:
  void expect(std::string_view name, const std::vector<std::int64_t>& shape) const {
    const auto it = by_name_.find(name);
    require(it != by_name_.end(), "random weights: no tensor {}", quote(name));
    const auto& has = tensors_[it->second].shape;
    std::int64_t size = 1;
    for (const std::int64_t n : has) size *= n;
    require(has == shape || (shape.size() == 1 && shape[0] == size),
            "random weights: tensor {}: expected [{}], got [{}]", quote(name),
            fmt::join(shape, ", "), fmt::join(has, ", "));
  }

  ModelConfig config_;
  GenerationConfig generation_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
};

// The shape that all models of the family share.
ModelConfig qwen3_5(std::int64_t hidden, std::int64_t layers, std::int64_t heads,
                    std::int64_t kv_heads, std::int64_t value_heads, std::int64_t intermediate,
                    const MoeConfig& moe) {
  ModelConfig c;
  c.architecture = moe.experts > 0 ? "qwen3_5_moe" : "qwen3_5";
  c.hidden = hidden, c.layers = layers, c.heads = heads, c.kv_heads = kv_heads, c.head_dim = 256;
  c.intermediate = intermediate, c.vocab = 248320, c.max_position = 262144;
  c.rope_theta = 1e7, c.qk_norm = true, c.rotary = 64;
  for (std::int64_t i = 0; i < layers; ++i) c.attends.push_back(i % 4 == 3);
  c.delta = {.key_heads = 16,
             .value_heads = value_heads,
             .key_dim = 128,
             .value_dim = 128,
             .conv_kernel = 4};
  c.moe = moe;
  return c;
}

struct Known {
  const char* name;
  ModelConfig (*make)();
};
constexpr Known kKnown[] = {{"qwen3.6-27b", [] { return qwen3_5(5120, 64, 24, 4, 48, 17408, {}); }},
                            {"qwen3.6-35b-a3b",
                             [] {
                               return qwen3_5(2048, 40, 16, 2, 32, 0, {256, 8, 512, 512});
                             }},
                            {"qwen3.5-0.8b", [] { return qwen3_5(1024, 24, 8, 2, 16, 3584, {}); }}};

}  // namespace

std::int64_t TensorShape::parameters() const {
  std::int64_t n = 1;
  for (const std::int64_t d : shape) n *= d;
  return n;
}

std::vector<TensorShape> decoder_tensors(const ModelConfig& c) {
  std::vector<TensorShape> list = {{"model.embed_tokens.weight", {c.vocab, c.hidden}},
                                   {"model.norm.weight", {c.hidden}}};
  if (!c.tied_embedding) list.push_back({"lm_head.weight", {c.vocab, c.hidden}});
  const std::int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  for (std::int64_t i = 0; i < c.layers; ++i) {
    const std::string p = fmt::format("model.layers.{}.", i);
    const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
      list.push_back({p + name, std::move(shape)});
    };
    const auto mlp = [&](const std::string& name, std::int64_t width) {
      add(name + "gate_proj.weight", {width, c.hidden});
      add(name + "up_proj.weight", {width, c.hidden});
      add(name + "down_proj.weight", {c.hidden, width});
    };
    add("input_layernorm.weight", {c.hidden});
    add("post_attention_layernorm.weight", {c.hidden});
    if (!c.hybrid() || c.attends[static_cast<std::size_t>(i)]) {
      add("self_attn.q_proj.weight", {c.hybrid() ? 2 * q : q, c.hidden});
      add("self_attn.k_proj.weight", {kv, c.hidden});
      add("self_attn.v_proj.weight", {kv, c.hidden});
      add("self_attn.o_proj.weight", {c.hidden, q});
      if (c.qk_norm) add("self_attn.q_norm.weight", {c.head_dim});
      if (c.qk_norm) add("self_attn.k_norm.weight", {c.head_dim});
    } else {
      const DeltaNetConfig& d = c.delta;
      add("linear_attn.in_proj_qkv.weight", {d.channels(), c.hidden});
      add("linear_attn.in_proj_z.weight", {d.value_width(), c.hidden});
      add("linear_attn.in_proj_b.weight", {d.value_heads, c.hidden});
      add("linear_attn.in_proj_a.weight", {d.value_heads, c.hidden});
      add("linear_attn.conv1d.weight", {d.channels(), 1, d.conv_kernel});
      add("linear_attn.A_log", {d.value_heads});
      add("linear_attn.dt_bias", {d.value_heads});
      add("linear_attn.norm.weight", {d.value_dim});
      add("linear_attn.out_proj.weight", {c.hidden, d.value_width()});
    }
    if (c.moe.experts == 0) {
      mlp("mlp.", c.intermediate);
      continue;
    }
    add("mlp.gate.weight", {c.moe.experts, c.hidden});
    add("mlp.shared_expert_gate.weight", {1, c.hidden});
    mlp("mlp.shared_expert.", c.moe.shared_intermediate);
    for (std::int64_t e = 0; e < c.moe.experts; ++e)
      mlp(fmt::format("mlp.experts.{}.", e), c.moe.intermediate);
  }
  return list;
}

std::vector<std::string> known_configs() {
  std::vector<std::string> names;
  for (const Known& k : kKnown) names.emplace_back(k.name);
  return names;
}

ModelConfig known_config(std::string_view name) {
  for (const Known& k : kKnown)
    if (name == k.name) return k.make();
  fail_usage("no configuration {}; known: {}", quote(name), fmt::join(known_configs(), ", "));
}

std::unique_ptr<Checkpoint> random_checkpoint(const ModelConfig& config) {
  return std::make_unique<RandomCheckpoint>(config);
}

}  // namespace nibble
