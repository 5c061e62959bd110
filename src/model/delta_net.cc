// Gated delta net:  h += out_proj(gated_rmsnorm(delta_rule(conv(qkv), a, b), z)),
//                   qkv, z, b, a = W rmsnorm(h)
#include "model/layers.h"
#include "ops/pieces.h"

namespace nibble {
namespace {

// conv1d.weight [channels, 1, taps] -> [taps, channels], as ops/delta_net.h takes it.
std::vector<float> taps_first(const std::vector<float>& w, std::int64_t channels,
                              std::int64_t taps) {
  std::vector<float> t(w.size());
  for (std::int64_t c = 0; c < channels; ++c)
    for (std::int64_t i = 0; i < taps; ++i)
      t[static_cast<std::size_t>(i * channels + c)] = w[static_cast<std::size_t>(c * taps + i)];
  return t;
}

class DeltaNet final : public HalfLayer {
 public:
  DeltaNet(Loader& l, std::int64_t layer, std::int64_t state) : layer_(layer), state_(state) {
    const ModelConfig& c = l.config();
    const DeltaNetConfig& d = c.delta;
    const std::string p = layer_prefix(layer), a = p + "linear_attn.";
    norm_ = l.vector(p + "input_layernorm.weight", c.hidden);
    qkv_ = l.matrix(a + "in_proj_qkv.weight", d.channels(), c.hidden);
    z_ = l.matrix(a + "in_proj_z.weight", d.value_width(), c.hidden);
    b_ = l.matrix(a + "in_proj_b.weight", d.value_heads, c.hidden);
    a_ = l.matrix(a + "in_proj_a.weight", d.value_heads, c.hidden);
    out_ = l.matrix(a + "out_proj.weight", c.hidden, d.value_width(), kRowParallelPieces);
    taps_ = l.upload(
        taps_first(l.checkpoint().vector(a + "conv1d.weight", d.channels() * d.conv_kernel),
                   d.channels(), d.conv_kernel));
    a_log_ = l.vector(a + "A_log", d.value_heads);
    dt_bias_ = l.vector(a + "dt_bias", d.value_heads);
    head_norm_ = l.vector(a + "norm.weight", d.value_dim);
    qkv_out_ = l.scratch("qkv", d.channels()), conv_ = l.scratch("convolved", d.channels());
    z_out_ = l.scratch("z", d.value_width()), o_ = l.scratch("delta rule", d.value_width());
    b_out_ = l.scratch("b", d.value_heads), a_out_ = l.scratch("a", d.value_heads);
  }

  void run(Pass& p) const override {
    const DeltaNetConfig& d = p.c.delta;
    const LinearOutput projections[] = {{qkv_.get(), nullptr, qkv_out_, d.channels()},
                                        {z_.get(), nullptr, z_out_, d.value_width()},
                                        {b_.get(), nullptr, b_out_, d.value_heads},
                                        {a_.get(), nullptr, a_out_, d.value_heads}};
    p.backend_.add_rmsnorm_linear_conv(p.fused(norm_, projections), {.u = qkv_out_,
                                                                     .weight = f32(taps_),
                                                                     .m = p.m,
                                                                     .rows = p.args.rows.data(),
                                                                     .state = p.args.delta,
                                                                     .layer = state_,
                                                                     .y = conv_});
    p.turn();
    p.finite(layer_, "in_proj_qkv", qkv_out_, p.m * d.channels());
    p.finite(layer_, "in_proj_z", z_out_, p.m * d.value_width());
    p.finite(layer_, "in_proj_b", b_out_, p.m * d.value_heads);
    p.finite(layer_, "in_proj_a", a_out_, p.m * d.value_heads);
    const LinearOutput out{out_.get(), nullptr, p.delta_out, p.c.hidden};
    p.backend_.delta_rule_linear({.rule = {.qkv = conv_,
                                           .a = a_out_,
                                           .b = b_out_,
                                           .a_log = f32(a_log_),
                                           .dt_bias = f32(dt_bias_),
                                           .m = p.m,
                                           .rows = p.args.rows.data(),
                                           .state = p.args.delta,
                                           .layer = state_,
                                           .out = o_,
                                           .activations = p.args.activations},
                                  .linear = {.o = o_,
                                             .z = z_out_,
                                             .weight = f32(head_norm_),
                                             .eps = static_cast<float>(p.c.rms_eps),
                                             .m = p.m,
                                             .heads = d.value_heads,
                                             .dim = d.value_dim,
                                             .activations = p.args.activations,
                                             .outputs = {&out, 1}}});
    p.finite(layer_, "delta_rule", o_, p.m * d.value_width());
    p.delta = p.delta_out;
    p.finite(layer_, "out_proj", p.delta, p.m * p.c.hidden);
  }

 private:
  std::int64_t layer_, state_;
  std::unique_ptr<Weight> qkv_, z_, b_, a_, out_;
  Backend::Buffer norm_, taps_, a_log_, dt_bias_, head_norm_;
  float *qkv_out_, *conv_, *z_out_, *b_out_, *a_out_, *o_;
};

}  // namespace

std::unique_ptr<HalfLayer> load_delta_net(Loader& l, std::int64_t layer, std::int64_t state) {
  return std::make_unique<DeltaNet>(l, layer, state);
}

}  // namespace nibble
