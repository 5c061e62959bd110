// Mixture of experts:  h += sum of weight_e expert_e(u) + sigmoid(gate . u) shared_expert(u),
//                      u = rmsnorm(h), experts and weights chosen by the router
#include "model/layers.h"
#include "ops/pieces.h"

namespace nibble {
namespace {

class Moe final : public HalfLayer {
 public:
  Moe(Loader& l, std::int64_t layer) : layer_(layer) {
    const MoeConfig& moe = l.config().moe;
    const std::string p = layer_prefix(layer), m = p + "mlp.", e = m + "experts.",
                      s = m + "shared_expert.";
    const std::int64_t hidden = l.config().hidden;
    norm_ = l.vector(p + "post_attention_layernorm.weight", hidden);
    router_ = l.matrix(m + "gate.weight", moe.experts, hidden);
    shared_score_ = l.matrix(m + "shared_expert_gate.weight", 1, hidden);
    gate_ = l.experts(e, "gate_proj.weight", moe.intermediate, hidden, 1);
    up_ = l.experts(e, "up_proj.weight", moe.intermediate, hidden, 1);
    down_ = l.experts(e, "down_proj.weight", hidden, moe.intermediate, kRowParallelPieces);
    shared_gate_ = l.matrix(s + "gate_proj.weight", moe.shared_intermediate, hidden);
    shared_up_ = l.matrix(s + "up_proj.weight", moe.shared_intermediate, hidden);
    shared_down_ =
        l.matrix(s + "down_proj.weight", hidden, moe.shared_intermediate, kRowParallelPieces);
    normed_ = l.scratch("normed", hidden), logits_ = l.scratch("router", moe.experts);
    shared_out_ = l.scratch("shared", 1), weights_ = l.scratch("weights", moe.top_k);
    ids_ = reinterpret_cast<std::int32_t*>(l.scratch("ids", moe.top_k));
  }

  void run(Pass& p) const override {
    const ModelConfig& c = p.c;
    p.backend_.router({.residual = p.h[p.now],
                       .delta = p.delta,
                       .weight = f32(norm_),
                       .eps = static_cast<float>(c.rms_eps),
                       .unit_offset = c.hybrid(),
                       .residual_out = p.delta != nullptr ? p.h[1 - p.now] : nullptr,
                       .normed = normed_,
                       .m = p.m,
                       .k = c.hidden,
                       .activations = p.args.activations,
                       .router = router_.get(),
                       .shared_gate = shared_score_.get(),
                       .top_k = c.moe.top_k,
                       .logits = logits_,
                       .shared = shared_out_,
                       .ids = ids_,
                       .weights = weights_});
    p.turn();
    p.finite(layer_, "router", logits_, p.m * c.moe.experts);
    p.backend_.experts({.x = normed_,
                        .ids = ids_,
                        .weights = weights_,
                        .shared = shared_out_,
                        .m = p.m,
                        .k = c.hidden,
                        .top_k = c.moe.top_k,
                        .activations = p.args.activations,
                        .gate = gate_.get(),
                        .up = up_.get(),
                        .down = down_.get(),
                        .shared_gate = shared_gate_.get(),
                        .shared_up = shared_up_.get(),
                        .shared_down = shared_down_.get(),
                        .y = p.delta_out});
    p.delta = p.delta_out;
    p.finite(layer_, "experts", p.delta, p.m * c.hidden);
  }

 private:
  std::int64_t layer_;
  Backend::Buffer norm_;
  std::unique_ptr<Weight> router_, shared_score_, gate_, up_, down_, shared_gate_, shared_up_,
      shared_down_;
  float *normed_, *logits_, *shared_out_, *weights_;
  std::int32_t* ids_;
};

}  // namespace

std::unique_ptr<HalfLayer> load_moe(Loader& l, std::int64_t layer) {
  return std::make_unique<Moe>(l, layer);
}

}  // namespace nibble
