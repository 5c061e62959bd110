// MLP:  h += down_proj(silu(gate u) * up u),   u = rmsnorm(h)
#include "model/layers.h"
#include "ops/pieces.h"

namespace nibble {
namespace {

class Mlp final : public HalfLayer {
 public:
  Mlp(Loader& l, std::int64_t layer) : layer_(layer), width_(l.config().intermediate) {
    const std::string p = layer_prefix(layer);
    const std::int64_t hidden = l.config().hidden;
    gate_ = l.matrix(p + "mlp.gate_proj.weight", width_, hidden);
    up_ = l.matrix(p + "mlp.up_proj.weight", width_, hidden);
    down_ = l.matrix(p + "mlp.down_proj.weight", hidden, width_, kRowParallelPieces);
    norm_ = l.vector(p + "post_attention_layernorm.weight", hidden);
    mlp_ = l.scratch("mlp", width_);
  }

  void run(Pass& p) const override {
    const LinearOutput gate_up[] = {{gate_.get(), nullptr, mlp_, width_}, {.w = up_.get()}};
    p.run(p.fused(norm_, gate_up, Epilogue::SwiGlu));
    p.finite(layer_, "gate_up", mlp_, p.m * width_);
    const LinearOutput out{down_.get(), nullptr, p.delta_out, p.c.hidden};
    p.backend_.linear({.x = mlp_,
                       .m = p.m,
                       .k = width_,
                       .activations = p.args.activations,
                       .outputs = {&out, 1}});
    p.delta = p.delta_out;
    p.finite(layer_, "down_proj", p.delta, p.m * p.c.hidden);
  }

 private:
  std::int64_t layer_, width_;
  std::unique_ptr<Weight> gate_, up_, down_;
  Backend::Buffer norm_;
  float* mlp_;
};

}  // namespace

std::unique_ptr<HalfLayer> load_mlp(Loader& l, std::int64_t layer) {
  return std::make_unique<Mlp>(l, layer);
}

}  // namespace nibble
