// The decoder of every family:
//   h = embed[id];  per layer: mixer, feed-forward (layers.h);  logits = head rmsnorm(h)
// Llama, Mistral, Qwen2 and Qwen3: attention and MLP. Qwen3.5 and 3.6: gated delta nets and, every
// few layers, gated attention; MLP or mixture of experts; norms times 1 + weight.
#include <algorithm>
#include <array>
#include <cmath>

#include "model/layers.h"

namespace nibble {

AddRmsNormLinearArgs Pass::fused(const Backend::Buffer& norm, std::span<const LinearOutput> outputs,
                                 Epilogue epilogue) const {
  return {.residual = h[now],
          .delta = delta,
          .weight = f32(norm),
          .eps = static_cast<float>(c.rms_eps),
          .unit_offset = c.hybrid(),
          .residual_out = delta != nullptr ? h[1 - now] : nullptr,
          .m = m,
          .k = c.hidden,
          .activations = args.activations,
          .outputs = outputs,
          .epilogue = epilogue};
}

void Pass::turn() {
  if (delta != nullptr) now = 1 - now;
}

void Pass::run(const AddRmsNormLinearArgs& a) {
  backend_.add_rmsnorm_linear(a);
  turn();
}

void Pass::finite(std::int64_t layer, const char* op, const float* p, std::int64_t n) const {
  if (!args.check_finite) return;
  std::vector<float> host(static_cast<std::size_t>(n));
  backend_.download(host.data(), p, host.size() * sizeof(float));
  for (std::size_t i = 0; i < host.size(); ++i)
    require(std::isfinite(host[i]), "layer {}: {} gives {} at element {}", layer, op, host[i], i);
}

namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

class Decoder final : public Model {
 public:
  Decoder(const Checkpoint& checkpoint, Backend& backend, std::int64_t max_rows,
          const std::function<void(double)>& progress)
      : c_(checkpoint.config()),
        backend_(backend),
        max_rows_(max_rows),
        frequencies_(rope_frequencies(c_)) {
    Loader l(checkpoint, backend, max_rows, progress);
    embedding_ = l.matrix(kEmbedding, c_.vocab, c_.hidden);
    if (checkpoint.has(kHead) && !c_.tied_embedding) {
      head_ = l.matrix(kHead, c_.vocab, c_.hidden);
      l.kept.idle_bytes += embedding_->bytes();
    }
    require(head_ || c_.tied_embedding,
            "lm_head.weight is missing and the configuration does not tie it to the "
            "embedding; is a shard missing?");
    final_norm_ = l.vector("model.norm.weight", c_.hidden);
    std::int64_t attention = 0, delta_nets = 0;
    for (std::int64_t i = 0; i < c_.layers; ++i) {
      const bool attends = !c_.hybrid() || c_.attends[static_cast<std::size_t>(i)];
      layers_.push_back(attends ? load_attention(l, i, attention++)
                                : load_delta_net(l, i, delta_nets++));
      layers_.push_back(c_.moe.experts > 0 ? load_moe(l, i) : load_mlp(l, i));
    }
    h_[0] = l.scratch("h", c_.hidden), h_[1] = l.scratch("h'", c_.hidden);
    delta_ = l.scratch("delta", c_.hidden);
    rope_.resize(static_cast<std::size_t>(max_rows_ * c_.rotary_dims()));
    kept_ = std::move(l.kept);
  }

  void forward(const ForwardArgs& a) override {
    Pass p(a, c_, backend_);
    require(p.m > 0 && p.m <= max_rows_ && a.rows.size() == a.ids.size(),
            "[forward] expected 1 to {} rows, got {}", max_rows_, p.m);
    const auto rope = std::span(rope_).first(static_cast<std::size_t>(p.m * c_.rotary_dims()));
    if (!std::equal(a.rows.begin(), a.rows.end(), next_.begin(), next_.end(),
                    [](RowPlace x, RowPlace y) { return x.position == y.position; })) {
      next_.clear();
      rope_table(frequencies_, a.rows, rope.data());
    }
    p.rope = rope.data(), p.delta_out = delta_, p.h[0] = h_[0], p.h[1] = h_[1];
    constexpr std::size_t kKept = 8;  // rows; larger steps are not worth keeping
    const auto key = step_key(a);
    const bool keep = a.ids.size() <= kKept && !a.check_finite &&
                      a.activations != Activations::Half;  // whose launches know the rows' places
    if (backend_.begin_step(
            {a.ids, a.rows, a.logits_of, rope},
            keep ? std::span<const std::uint64_t>(key) : std::span<const std::uint64_t>())) {
      // While the device works: the table of the tokens that will come next.
      next_.assign(a.rows.begin(), a.rows.end());
      for (RowPlace& r : next_) ++r.position;
      rope_table(frequencies_, next_, rope_.data());
      return;
    }
    try {
      backend_.embedding({a.ids.data(), embedding_.get(), p.m, h_[0]});
      p.finite(0, "embedding", h_[0], p.m * c_.hidden);
      for (const auto& half : layers_) half->run(p);
      if (!a.logits_of.empty()) logits(p);
    } catch (...) {
      backend_.end_step(true);
      throw;
    }
    backend_.end_step(false);
  }

  std::uint64_t weight_bytes() const override { return kept_.weight_bytes; }
  std::uint64_t weight_bytes_per_token() const override {
    return kept_.weight_bytes - kept_.idle_bytes;
  }
  std::uint64_t scratch_bytes() const override { return kept_.scratch_bytes; }

 private:
  // All that shapes a step, besides ids and which places they are.
  std::array<std::uint64_t, 10> step_key(const ForwardArgs& a) const {
    std::int32_t longest = 0;
    for (const RowPlace& r : a.rows) longest = std::max(longest, r.position);
    const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
    return {address(this),
            a.ids.size(),
            a.logits_of.size(),
            static_cast<std::uint64_t>(a.activations),
            static_cast<std::uint64_t>(longest / kAttentionSplit),
            address(a.logits),
            address(a.cache),
            address(a.delta),
            own_slots(a.rows),
            address(a.top.values)};
  }

  void logits(Pass& p) {
    const auto wanted = static_cast<std::int64_t>(p.args.logits_of.size());
    const LinearOutput out{head_ ? head_.get() : embedding_.get(), nullptr, p.args.logits,
                           c_.vocab};
    AddRmsNormLinearArgs last = p.fused(final_norm_, {&out, 1});
    last.residual_out = nullptr, last.m = wanted;
    if (last.activations == Activations::Half) last.activations = Activations::Int16;
    if (wanted != p.m) {  // the other buffer is free, and then the residual's own
      const auto pick = [&](const float* from, float* to) {
        backend_.gather(from, p.args.logits_of.data(), wanted, c_.hidden, to);
        return to;
      };
      last.residual = pick(p.h[p.now], p.h[1 - p.now]);
      if (p.delta != nullptr) last.delta = pick(p.delta, p.h[p.now]);
    }
    backend_.add_rmsnorm_linear(last);
    p.finite(c_.layers, "lm_head", p.args.logits, wanted * c_.vocab);
    if (p.args.top.values == nullptr) return;
    TopLogitsArgs top = p.args.top;
    top.logits = p.args.logits, top.m = wanted, top.n = c_.vocab;
    backend_.top_logits(top);
  }

  ModelConfig c_;
  Backend& backend_;
  std::int64_t max_rows_;
  std::unique_ptr<Weight> embedding_, head_;
  Backend::Buffer final_norm_;
  std::vector<std::unique_ptr<HalfLayer>> layers_;
  std::vector<float> frequencies_, rope_;
  std::vector<RowPlace> next_;  // rope_ holds their table
  Loader::Kept kept_;
  float *h_[2], *delta_;
};

}  // namespace

std::unique_ptr<Model> Model::load(const Checkpoint& checkpoint, Backend& backend,
                                   std::int64_t max_rows,
                                   const std::function<void(double)>& progress) {
  return std::make_unique<Decoder>(checkpoint, backend, max_rows, progress);
}

}  // namespace nibble
