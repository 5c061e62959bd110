// Attention:  h += o_proj attention(rope(q, k), v),   q, k, v = W rmsnorm(h)  (+ bias, q/k norm)
// In hybrid models q_proj interleaves [query | gate] a head, RoPE turns part of a head, norms are
// times 1 + weight, and o_proj takes attention * sigmoid(gate).
#include <cmath>

#include "model/layers.h"
#include "ops/pieces.h"

namespace nibble {
namespace {

class Attention final : public HalfLayer {
 public:
  Attention(Loader& l, std::int64_t layer, std::int64_t state)
      : layer_(layer),
        state_(state),
        q_width_(l.config().heads * l.config().head_dim),
        kv_width_(l.config().kv_heads * l.config().head_dim),
        gated_(l.config().hybrid()) {
    const ModelConfig& c = l.config();
    const std::string p = layer_prefix(layer), a = p + "self_attn.";
    const std::int64_t q_rows = gated_ ? 2 * q_width_ : q_width_;
    q_ = l.matrix(a + "q_proj.weight", q_rows, c.hidden);
    k_ = l.matrix(a + "k_proj.weight", kv_width_, c.hidden);
    v_ = l.matrix(a + "v_proj.weight", kv_width_, c.hidden);
    o_ = l.matrix(a + "o_proj.weight", c.hidden, q_width_, kRowParallelPieces);
    norm_ = l.vector(p + "input_layernorm.weight", c.hidden);
    if (c.qk_norm) {
      q_norm_ = l.vector(a + "q_norm.weight", c.head_dim);
      k_norm_ = l.vector(a + "k_norm.weight", c.head_dim);
    }
    if (c.qkv_bias) {
      q_bias_ = l.vector(a + "q_proj.bias", q_rows);
      k_bias_ = l.vector(a + "k_proj.bias", kv_width_);
      v_bias_ = l.vector(a + "v_proj.bias", kv_width_);
    }
    if (c.o_bias) o_bias_ = l.vector(a + "o_proj.bias", c.hidden);
    q_out_ = l.scratch("q", q_rows), q_rotated_ = l.scratch("q rotated", q_width_);
    k_out_ = l.scratch("k", kv_width_), v_out_ = l.scratch("v", kv_width_);
    out_ = l.scratch("attention", q_width_);
  }

  void run(Pass& p) const override {
    const ModelConfig& c = p.c;
    const std::int64_t q_rows = q_->format().n, pitch = q_rows / c.heads;
    const LinearOutput qkv[] = {{q_.get(), f32(q_bias_), q_out_, q_rows},
                                {k_.get(), f32(k_bias_), k_out_, kv_width_},
                                {v_.get(), f32(v_bias_), v_out_, kv_width_}};
    p.run(p.fused(norm_, qkv));
    p.finite(layer_, "q_proj", q_out_, p.m * q_rows);
    p.finite(layer_, "k_proj", k_out_, p.m * kv_width_);
    p.finite(layer_, "v_proj", v_out_, p.m * kv_width_);
    p.backend_.rope_attention(
        {.q = q_out_,
         .q_pitch = pitch,
         .k = k_out_,
         .v = v_out_,
         .q_norm = f32(q_norm_),
         .k_norm = f32(k_norm_),
         .unit_offset = gated_,
         .eps = static_cast<float>(c.rms_eps),
         .cos_sin = p.rope,
         .m = p.m,
         .heads = c.heads,
         .rotary = c.rotary_dims(),
         .rows = p.args.rows.data(),
         .cache = p.args.cache,
         .layer = state_,
         .q_out = q_rotated_},
        {.q = q_rotated_,
         .gate = gated_ ? q_out_ + c.head_dim : nullptr,
         .gate_pitch = pitch,
         .m = p.m,
         .heads = c.heads,
         .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim))),
         .rows = p.args.rows.data(),
         .cache = p.args.cache,
         .layer = state_,
         .out = out_,
         .activations = p.args.activations});
    p.finite(layer_, "attention", out_, p.m * q_width_);
    const LinearOutput out{o_.get(), f32(o_bias_), p.delta_out, c.hidden};
    p.backend_.linear({.x = out_,
                       .m = p.m,
                       .k = q_width_,
                       .activations = p.args.activations,
                       .outputs = {&out, 1}});
    p.delta = p.delta_out;
    p.finite(layer_, "o_proj", p.delta, p.m * c.hidden);
  }

 private:
  std::int64_t layer_, state_, q_width_, kv_width_;
  bool gated_;
  std::unique_ptr<Weight> q_, k_, v_, o_;
  Backend::Buffer norm_, q_norm_, k_norm_, q_bias_, k_bias_, v_bias_, o_bias_;
  float *q_out_, *q_rotated_, *k_out_, *v_out_, *out_;
};

}  // namespace

std::unique_ptr<HalfLayer> load_attention(Loader& l, std::int64_t layer, std::int64_t state) {
  return std::make_unique<Attention>(l, layer, state);
}

}  // namespace nibble
