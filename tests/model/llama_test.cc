// The Llama family against a decoder written out in double, over configurations with and without
// biases, q/k norms, grouped queries, RoPE scaling and a tied head.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numbers>
#include <random>

#include "backend/cpu/cpu_backend.h"
#include "model/model.h"

namespace nibble {
namespace {

class Values final : public WeightSource {
 public:
  Values(const std::string& name, std::int64_t n, std::int64_t k, const std::vector<float>& v)
      : WeightSource(name, {WeightType::F32, n, k, 0, true}), v_(v) {}
  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override {
    out.values.assign(v_.begin() + row * format_.k, v_.begin() + (row + count) * format_.k);
  }

 private:
  const std::vector<float>& v_;
};

// Random tensors of any name, made when first asked for.
class FakeCheckpoint final : public Checkpoint {
 public:
  explicit FakeCheckpoint(ModelConfig c) : c_(std::move(c)) {}
  const std::vector<float>& get(const std::string& name, std::int64_t size) const {
    std::vector<float>& v = tensors_[name];
    if (v.empty()) {
      std::mt19937 rng(static_cast<unsigned>(std::hash<std::string>{}(name)));
      std::normal_distribution<float> normal(name.find("norm") != std::string::npos ? 1.0f : 0.0f,
                                             0.2f);
      v.resize(static_cast<std::size_t>(size));
      for (float& x : v) x = normal(rng);
    }
    return v;
  }
  std::string format() const override { return "fake"; }
  const ModelConfig& config() const override { return c_; }
  const GenerationConfig& generation() const override { return g_; }
  std::vector<TensorInfo> tensors() const override { return {}; }
  bool has(std::string_view name) const override {
    return name != "lm_head.weight" || !c_.tied_embedding;
  }
  std::unique_ptr<WeightSource> weight(std::string_view name, std::int64_t n,
                                       std::int64_t k) const override {
    return std::make_unique<Values>(std::string(name), n, k, get(std::string(name), n * k));
  }
  std::vector<float> vector(std::string_view name, std::int64_t size) const override {
    return get(std::string(name), size);
  }
  std::optional<TokenizerSpec> tokenizer() const override { return {}; }
  std::optional<std::string> chat_template() const override { return {}; }
  std::vector<std::string> notices() const override { return {}; }

 private:
  ModelConfig c_;
  GenerationConfig g_;
  mutable std::map<std::string, std::vector<float>> tensors_;
};

using Vec = std::vector<double>;

Vec times(const std::vector<float>& w, const Vec& x, std::size_t n,
          const std::vector<float>* bias = nullptr) {
  Vec y(n);
  for (std::size_t r = 0; r < n; ++r) {
    y[r] = bias != nullptr ? (*bias)[r] : 0.0;
    for (std::size_t c = 0; c < x.size(); ++c)
      y[r] += static_cast<double>(w[r * x.size() + c]) * x[c];
  }
  return y;
}

Vec norm(const Vec& x, const std::vector<float>& w, double eps) {
  double s = 0;
  for (const double v : x) s += v * v;
  Vec y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    y[i] = x[i] / std::sqrt(s / static_cast<double>(x.size()) + eps) * w[i];
  return y;
}

// Logits of every position.
std::vector<Vec> reference(const FakeCheckpoint& f, const std::vector<std::int32_t>& ids) {
  const ModelConfig& c = f.config();
  const auto hd = static_cast<std::size_t>(c.head_dim), heads = static_cast<std::size_t>(c.heads);
  const auto kv_heads = static_cast<std::size_t>(c.kv_heads),
             hidden = static_cast<std::size_t>(c.hidden);
  const auto get = [&](const std::string& n, std::size_t size) -> const std::vector<float>& {
    return f.get(n, static_cast<std::int64_t>(size));
  };
  const auto& embed = get("model.embed_tokens.weight", static_cast<std::size_t>(c.vocab) * hidden);
  std::vector<std::vector<Vec>> keys(static_cast<std::size_t>(c.layers)), values(keys.size());
  std::vector<Vec> logits;
  for (std::size_t pos = 0; pos < ids.size(); ++pos) {
    Vec h(hidden);
    for (std::size_t i = 0; i < hidden; ++i)
      h[i] = embed[static_cast<std::size_t>(ids[pos]) * hidden + i];
    for (std::size_t l = 0; l < keys.size(); ++l) {
      const std::string p = fmt::format("model.layers.{}.", l);
      const auto project = [&](const char* name, const Vec& x, std::size_t n, bool bias) {
        return times(get(p + name + ".weight", n * x.size()), x, n,
                     bias ? &get(p + name + ".bias", n) : nullptr);
      };
      const Vec u = norm(h, get(p + "input_layernorm.weight", hidden), c.rms_eps);
      Vec q = project("self_attn.q_proj", u, heads * hd, c.qkv_bias),
          k = project("self_attn.k_proj", u, kv_heads * hd, c.qkv_bias);
      values[l].push_back(project("self_attn.v_proj", u, kv_heads * hd, c.qkv_bias));
      const auto rotate = [&](Vec& x, const char* norm_name) {
        for (std::size_t b = 0; b < x.size(); b += hd) {
          Vec head(x.begin() + static_cast<std::ptrdiff_t>(b),
                   x.begin() + static_cast<std::ptrdiff_t>(b + hd));
          if (c.qk_norm) head = norm(head, get(p + norm_name, hd), c.rms_eps);
          for (std::size_t d = 0; d < hd / 2; ++d) {
            double w =
                std::pow(c.rope_theta, -2.0 * static_cast<double>(d) / static_cast<double>(hd));
            if (c.rope_scaling) {  // by wavelength, as published
              const auto& s = *c.rope_scaling;
              const double wave = 2 * std::numbers::pi / w,
                           original = static_cast<double>(s.original_max_position);
              if (wave > original / s.low_freq_factor) {
                w /= s.factor;
              } else if (wave > original / s.high_freq_factor) {
                const double smooth = (original / wave - s.low_freq_factor) /
                                      (s.high_freq_factor - s.low_freq_factor);
                w = (1 - smooth) * w / s.factor + smooth * w;
              }
            }
            const double a = static_cast<double>(pos) * w;
            x[b + d] = head[d] * std::cos(a) - head[d + hd / 2] * std::sin(a);
            x[b + d + hd / 2] = head[d + hd / 2] * std::cos(a) + head[d] * std::sin(a);
          }
        }
      };
      rotate(q, "self_attn.q_norm.weight"), rotate(k, "self_attn.k_norm.weight");
      keys[l].push_back(k);
      Vec o(heads * hd);
      for (std::size_t j = 0; j < heads; ++j) {
        const std::size_t kv = j / (heads / kv_heads) * hd;
        Vec s(pos + 1);
        double sum = 0;
        for (std::size_t t = 0; t <= pos; ++t) {
          for (std::size_t d = 0; d < hd; ++d) s[t] += q[j * hd + d] * keys[l][t][kv + d];
          sum += s[t] = std::exp(s[t] / std::sqrt(static_cast<double>(hd)));
        }
        for (std::size_t t = 0; t <= pos; ++t)
          for (std::size_t d = 0; d < hd; ++d) o[j * hd + d] += s[t] / sum * values[l][t][kv + d];
      }
      const Vec a = project("self_attn.o_proj", o, hidden, c.o_bias);
      for (std::size_t i = 0; i < hidden; ++i) h[i] += a[i];
      const Vec v = norm(h, get(p + "post_attention_layernorm.weight", hidden), c.rms_eps);
      Vec g = project("mlp.gate_proj", v, static_cast<std::size_t>(c.intermediate), false);
      const Vec up = project("mlp.up_proj", v, static_cast<std::size_t>(c.intermediate), false);
      for (std::size_t i = 0; i < g.size(); ++i) g[i] = g[i] / (1 + std::exp(-g[i])) * up[i];
      const Vec d = project("mlp.down_proj", g, hidden, false);
      for (std::size_t i = 0; i < hidden; ++i) h[i] += d[i];
    }
    const auto& head = c.tied_embedding
                           ? embed
                           : get("lm_head.weight", static_cast<std::size_t>(c.vocab) * hidden);
    logits.push_back(times(head, norm(h, get("model.norm.weight", hidden), c.rms_eps),
                           static_cast<std::size_t>(c.vocab)));
  }
  return logits;
}

ModelConfig config(int variant) {
  ModelConfig c{.architecture = "llama",
                .hidden = 64,
                .layers = 2,
                .heads = 4,
                .kv_heads = 2,
                .head_dim = 16,
                .intermediate = 96,
                .vocab = 37,
                .max_position = 256,
                .rope_theta = 100};
  switch (variant) {
    case 1:
      c.tied_embedding = true, c.kv_heads = 1, c.heads = 3, c.head_dim = 24;
      break;
    case 2:
      c.architecture = "qwen2", c.qkv_bias = true;
      break;
    case 3:
      c.architecture = "qwen3", c.qk_norm = true, c.head_dim = 32, c.kv_heads = 4;
      break;
    case 4:
      c.qkv_bias = c.o_bias = true, c.rope_scaling = RopeScaling{8, 1, 4, 64};
      break;
  }
  return c;
}

TEST(Llama, MatchesADecoderInDouble) {
  for (int variant = 0; variant < 5; ++variant) {
    const FakeCheckpoint f(config(variant));
    const ModelConfig& c = f.config();
    cpu::CpuBackend backend(2, cpu::best_isa());
    const auto model = Model::load(f, backend, 32, {});
    const auto cache =
        backend.make_kv_cache({c.layers, 2, c.kv_heads, c.head_dim, 64, KvType::F32});
    const std::vector<std::int32_t> ids = {3, 36, 0, 11, 11, 25, 7, 19, 2, 30, 5, 8, 17, 1, 22};
    std::vector<RowPlace> rows;
    std::vector<std::int32_t> all;
    for (std::size_t i = 0; i < ids.size(); ++i)
      rows.push_back({1, static_cast<int>(i)}), all.push_back(static_cast<int>(i));
    std::vector<float> logits(ids.size() * static_cast<std::size_t>(c.vocab));
    model->forward({ids, rows, all, logits.data(), cache.get(), Activations::Fp32, true});
    const std::vector<Vec> want = reference(f, ids);
    double largest = 0;
    for (const Vec& v : want)
      for (const double x : v) largest = std::max(largest, std::fabs(x));
    for (std::size_t i = 0; i < ids.size(); ++i)
      for (std::size_t v = 0; v < want[i].size(); ++v)
        ASSERT_NEAR(logits[i * want[i].size() + v], want[i][v], 2e-5 * largest)
            << "variant " << variant << " position " << i;
    // The last row alone, through gather: the same bits.
    std::vector<float> last(static_cast<std::size_t>(c.vocab));
    model->forward(
        {ids, rows, std::span(all).last(1), last.data(), cache.get(), Activations::Fp32, false});
    EXPECT_TRUE(std::equal(last.begin(), last.end(), logits.end() - c.vocab));
  }
}

TEST(Llama, CheckFiniteNamesLayerAndOperation) {
  ModelConfig c = config(0);
  const FakeCheckpoint f(c);
  const_cast<std::vector<float>&>(f.get("model.layers.1.mlp.down_proj.weight", 64 * 96))
      .assign(64 * 96, 3e38f);
  const_cast<std::vector<float>&>(f.get("model.layers.1.post_attention_layernorm.weight", 64))
      .assign(64, 1e4f);
  cpu::CpuBackend backend(1, cpu::best_isa());
  const auto model = Model::load(f, backend, 4, {});
  const auto cache = backend.make_kv_cache({c.layers, 1, c.kv_heads, c.head_dim, 8, KvType::F32});
  const std::vector<std::int32_t> ids = {1};
  const std::vector<RowPlace> rows = {{0, 0}};
  try {
    model->forward({ids, rows, {}, nullptr, cache.get(), Activations::Fp32, true});
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("layer 1: down_proj"), std::string::npos) << e.what();
  }
}

TEST(Rope, Llama3ScalingKeepsHighAndDividesLowFrequencies) {
  ModelConfig c = config(4);
  const std::vector<float> scaled = rope_frequencies(c);
  c.rope_scaling.reset();
  const std::vector<float> plain = rope_frequencies(c);
  EXPECT_EQ(scaled.front(), plain.front());
  EXPECT_FLOAT_EQ(scaled.back(), plain.back() / 8);
}

}  // namespace
}  // namespace nibble
