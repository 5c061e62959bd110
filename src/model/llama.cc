// The Llama family (Llama, Mistral, Qwen2, Qwen3 dense):
//   h = embed[id]
//   per layer: h += o_proj attention(rope(q, k), v),  q, k, v = W rmsnorm(h)   (+ bias, q/k norm)
//              h += down_proj(silu(gate u) * up u),   u = rmsnorm(h)
//   logits = head rmsnorm(h)
// The residual ping-pongs between two buffers; every sum h + delta is made inside the next fused
// add_rmsnorm_linear. o_proj and down_proj are row-parallel: 8 pieces.
#include <cmath>
#include <string>

#include "model/model.h"
#include "ops/pieces.h"

namespace nibble {
namespace {

struct Layer {
  std::unique_ptr<Weight> q, k, v, o, gate, up, down;
  Backend::Buffer input_norm, post_norm, q_norm, k_norm, q_bias, k_bias, v_bias, o_bias;
};

struct MatrixName {
  std::string name;
  std::int64_t n, k;
  int pieces;
};

std::vector<MatrixName> layer_matrices(const ModelConfig& c, std::int64_t layer) {
  const std::string p = fmt::format("model.layers.{}.", layer);
  const std::int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  return {{p + "self_attn.q_proj.weight", q, c.hidden, 1},
          {p + "self_attn.k_proj.weight", kv, c.hidden, 1},
          {p + "self_attn.v_proj.weight", kv, c.hidden, 1},
          {p + "self_attn.o_proj.weight", c.hidden, q, kRowParallelPieces},
          {p + "mlp.gate_proj.weight", c.intermediate, c.hidden, 1},
          {p + "mlp.up_proj.weight", c.intermediate, c.hidden, 1},
          {p + "mlp.down_proj.weight", c.hidden, c.intermediate, kRowParallelPieces}};
}

const char* const kEmbedding = "model.embed_tokens.weight";
const char* const kHead = "lm_head.weight";

class Llama final : public Model {
 public:
  Llama(const Checkpoint& checkpoint, Backend& backend, std::int64_t max_rows,
        const std::function<void(double)>& progress);
  void forward(const ForwardArgs& a) override;
  std::uint64_t weight_bytes() const override { return weight_bytes_; }
  std::uint64_t weight_bytes_per_token() const override { return bytes_per_token_; }
  std::uint64_t scratch_bytes() const override { return scratch_bytes_; }

 private:
  float* scratch(std::int64_t width);
  Backend::Buffer vector(const Checkpoint& checkpoint, const std::string& name, std::int64_t size);
  const Weight& head() const { return head_ ? *head_ : *embedding_; }

  ModelConfig c_;
  Backend& backend_;
  std::int64_t max_rows_;
  std::uint64_t weight_bytes_ = 0, bytes_per_token_ = 0, scratch_bytes_ = 0;
  std::unique_ptr<Weight> embedding_, head_;
  Backend::Buffer final_norm_;
  std::vector<Layer> layers_;
  std::vector<float> frequencies_, rope_host_;
  std::vector<Backend::Buffer> buffers_;
  // [max_rows, ...]: residual ping-pong, delta, projections, attention, MLP, rope table.
  float *h_[2], *delta_, *q_, *q_rotated_, *k_, *v_, *attention_, *mlp_, *rope_;
};

const float* f32(const Backend::Buffer& b) { return reinterpret_cast<const float*>(b.get()); }

Llama::Llama(const Checkpoint& checkpoint, Backend& backend, std::int64_t max_rows,
             const std::function<void(double)>& progress)
    : c_(checkpoint.config()),
      backend_(backend),
      max_rows_(max_rows),
      frequencies_(rope_frequencies(c_)) {
  const double total = static_cast<double>(estimate_weight_bytes(checkpoint));
  const auto matrix = [&](const MatrixName& m) {
    auto w = backend_.pack(*checkpoint.weight(m.name, m.n, m.k), m.pieces);
    weight_bytes_ += w->bytes();
    if (progress) progress(std::min(1.0, static_cast<double>(weight_bytes_) / total));
    return w;
  };
  embedding_ = matrix({kEmbedding, c_.vocab, c_.hidden, 1});
  if (checkpoint.has(kHead) && !c_.tied_embedding) head_ = matrix({kHead, c_.vocab, c_.hidden, 1});
  require(head_ || c_.tied_embedding,
          "lm_head.weight is missing and the configuration does not tie it to the "
          "embedding; is a shard missing?");
  final_norm_ = vector(checkpoint, "model.norm.weight", c_.hidden);
  for (std::int64_t i = 0; i < c_.layers; ++i) {
    Layer l;
    std::unique_ptr<Weight>* const into[] = {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down};
    const std::vector<MatrixName> names = layer_matrices(c_, i);
    for (std::size_t m = 0; m < names.size(); ++m) *into[m] = matrix(names[m]);
    const std::string p = fmt::format("model.layers.{}.", i);
    const std::int64_t q = c_.heads * c_.head_dim, kv = c_.kv_heads * c_.head_dim;
    l.input_norm = vector(checkpoint, p + "input_layernorm.weight", c_.hidden);
    l.post_norm = vector(checkpoint, p + "post_attention_layernorm.weight", c_.hidden);
    if (c_.qk_norm) {
      l.q_norm = vector(checkpoint, p + "self_attn.q_norm.weight", c_.head_dim);
      l.k_norm = vector(checkpoint, p + "self_attn.k_norm.weight", c_.head_dim);
    }
    if (c_.qkv_bias) {
      l.q_bias = vector(checkpoint, p + "self_attn.q_proj.bias", q);
      l.k_bias = vector(checkpoint, p + "self_attn.k_proj.bias", kv);
      l.v_bias = vector(checkpoint, p + "self_attn.v_proj.bias", kv);
    }
    if (c_.o_bias) l.o_bias = vector(checkpoint, p + "self_attn.o_proj.bias", c_.hidden);
    layers_.push_back(std::move(l));
  }
  bytes_per_token_ = weight_bytes_ - (head_ ? embedding_->bytes() : 0);
  const std::int64_t q = c_.heads * c_.head_dim, kv = c_.kv_heads * c_.head_dim;
  for (float*& h : h_) h = scratch(c_.hidden);
  delta_ = scratch(c_.hidden), q_ = scratch(q), q_rotated_ = scratch(q), k_ = scratch(kv),
  v_ = scratch(kv);
  attention_ = scratch(q), mlp_ = scratch(c_.intermediate), rope_ = scratch(c_.head_dim);
  rope_host_.resize(static_cast<std::size_t>(max_rows_ * c_.head_dim));
}

float* Llama::scratch(std::int64_t width) {
  const auto bytes = static_cast<std::size_t>(max_rows_ * width) * sizeof(float);
  buffers_.push_back(backend_.alloc(bytes));
  scratch_bytes_ += bytes;
  return reinterpret_cast<float*>(buffers_.back().get());
}

Backend::Buffer Llama::vector(const Checkpoint& checkpoint, const std::string& name,
                              std::int64_t size) {
  const std::vector<float> v = checkpoint.vector(name, size);
  Backend::Buffer b = backend_.alloc(v.size() * sizeof(float));
  backend_.upload(b.get(), v.data(), v.size() * sizeof(float));
  weight_bytes_ += v.size() * sizeof(float);
  return b;
}

void Llama::forward(const ForwardArgs& a) {
  const auto m = static_cast<std::int64_t>(a.ids.size());
  require(m > 0 && m <= max_rows_ && a.rows.size() == a.ids.size(),
          "[forward] expected 1 to {} rows, got {}", max_rows_, m);
  const auto eps = static_cast<float>(c_.rms_eps);
  const std::int64_t q_width = c_.heads * c_.head_dim, kv_width = c_.kv_heads * c_.head_dim;
  const auto finite = [&](std::int64_t layer, const char* op, const float* p, std::int64_t n) {
    if (!a.check_finite) return;
    std::vector<float> host(static_cast<std::size_t>(n));
    backend_.download(host.data(), p, host.size() * sizeof(float));
    for (std::size_t i = 0; i < host.size(); ++i)
      require(std::isfinite(host[i]), "layer {}: {} gives {} at element {}", layer, op, host[i], i);
  };
  rope_table(frequencies_, a.rows, rope_host_.data());
  backend_.upload(rope_, rope_host_.data(),
                  static_cast<std::size_t>(m * c_.head_dim) * sizeof(float));

  backend_.embedding({a.ids.data(), embedding_.get(), m, h_[0]});
  finite(0, "embedding", h_[0], m * c_.hidden);
  int now = 0;                   // h_[now] is the residual
  const float* delta = nullptr;  // what the next fused operation adds to it
  const auto fused = [&](const Backend::Buffer& norm, std::span<const LinearOutput> outputs,
                         Epilogue epilogue) {
    backend_.add_rmsnorm_linear({.residual = h_[now],
                                 .delta = delta,
                                 .weight = f32(norm),
                                 .eps = eps,
                                 .residual_out = delta != nullptr ? h_[1 - now] : nullptr,
                                 .m = m,
                                 .k = c_.hidden,
                                 .activations = a.activations,
                                 .outputs = outputs,
                                 .epilogue = epilogue});
    if (delta != nullptr) now = 1 - now;
  };
  const auto linear = [&](const float* x, std::int64_t k, const Weight& w, const float* bias) {
    const LinearOutput out{&w, bias, delta_, c_.hidden};
    backend_.linear({.x = x, .m = m, .k = k, .activations = a.activations, .outputs = {&out, 1}});
    delta = delta_;
  };
  for (std::int64_t i = 0; i < c_.layers; ++i) {
    const Layer& l = layers_[static_cast<std::size_t>(i)];
    const LinearOutput qkv[] = {{l.q.get(), f32(l.q_bias), q_, q_width},
                                {l.k.get(), f32(l.k_bias), k_, kv_width},
                                {l.v.get(), f32(l.v_bias), v_, kv_width}};
    fused(l.input_norm, qkv, Epilogue::None);
    finite(i, "q_proj", q_, m * q_width), finite(i, "k_proj", k_, m * kv_width),
        finite(i, "v_proj", v_, m * kv_width);
    backend_.rope_cache({.q = q_,
                         .k = k_,
                         .v = v_,
                         .q_norm = f32(l.q_norm),
                         .k_norm = f32(l.k_norm),
                         .eps = eps,
                         .cos_sin = rope_,
                         .m = m,
                         .heads = c_.heads,
                         .rotary = c_.head_dim,
                         .rows = a.rows.data(),
                         .cache = a.cache,
                         .layer = i,
                         .q_out = q_rotated_});
    backend_.attention(
        {.q = q_rotated_,
         .m = m,
         .heads = c_.heads,
         .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c_.head_dim))),
         .rows = a.rows.data(),
         .cache = a.cache,
         .layer = i,
         .out = attention_});
    finite(i, "attention", attention_, m * q_width);
    linear(attention_, q_width, *l.o, f32(l.o_bias));
    finite(i, "o_proj", delta_, m * c_.hidden);
    const LinearOutput gate_up[] = {{l.gate.get(), nullptr, mlp_, c_.intermediate},
                                    {.w = l.up.get()}};
    fused(l.post_norm, gate_up, Epilogue::SwiGlu);
    finite(i, "gate_up", mlp_, m * c_.intermediate);
    linear(mlp_, c_.intermediate, *l.down, nullptr);
    finite(i, "down_proj", delta_, m * c_.hidden);
  }

  const auto wanted = static_cast<std::int64_t>(a.logits_of.size());
  if (wanted == 0) return;
  const float *h = h_[now], *d = delta;
  if (wanted != m) {  // the projections' buffers are free again
    backend_.gather(h, a.logits_of.data(), wanted, c_.hidden, h_[1 - now]);
    h = h_[1 - now];
    if (d != nullptr)
      backend_.gather(d, a.logits_of.data(), wanted, c_.hidden, h_[now]), d = h_[now];
  }
  const LinearOutput out{&head(), nullptr, a.logits, c_.vocab};
  backend_.add_rmsnorm_linear({.residual = h,
                               .delta = d,
                               .weight = f32(final_norm_),
                               .eps = eps,
                               .m = wanted,
                               .k = c_.hidden,
                               .activations = a.activations,
                               .outputs = {&out, 1}});
  finite(c_.layers, "lm_head", a.logits, wanted * c_.vocab);
}

}  // namespace

std::uint64_t estimate_weight_bytes(const Checkpoint& checkpoint) {
  const ModelConfig& c = checkpoint.config();
  std::uint64_t bytes = 0;
  const auto add = [&](const MatrixName& m) {
    bytes += checkpoint.weight(m.name, m.n, m.k)->format().bytes();
  };
  add({kEmbedding, c.vocab, c.hidden, 1});
  if (checkpoint.has(kHead) && !c.tied_embedding) add({kHead, c.vocab, c.hidden, 1});
  for (std::int64_t i = 0; i < c.layers; ++i)
    for (const MatrixName& m : layer_matrices(c, i)) add(m);
  return bytes;
}

std::unique_ptr<Model> Model::load(const Checkpoint& checkpoint, Backend& backend,
                                   std::int64_t max_rows,
                                   const std::function<void(double)>& progress) {
  return std::make_unique<Llama>(checkpoint, backend, max_rows, progress);
}

}  // namespace nibble
