// The halves of a decoder layer, each written once: a mixer (attention, gated delta net), then a
// feed-forward (MLP, mixture of experts). Every half is h += f(rmsnorm(h)); the sum is made inside
// the next one's fused operation, and the residual ping-pongs between two buffers.
#pragma once
#include <memory>
#include <string>

#include "model/loader.h"
#include "model/model.h"

namespace nibble {

// One forward() under way.
class Pass {
 public:
  Pass(const ForwardArgs& a, const ModelConfig& config, Backend& backend)
      : args(a), c(config), backend_(backend), m(static_cast<std::int64_t>(a.ids.size())) {}

  // The next half's fused operation: h += delta, then outputs = W rmsnorm(h).
  AddRmsNormLinearArgs fused(const Backend::Buffer& norm, std::span<const LinearOutput> outputs,
                             Epilogue epilogue = Epilogue::None) const;
  void run(const AddRmsNormLinearArgs& a);  // and turn the residual over
  void turn();                              // the residual is now the other buffer, if it changed
  // Throws Error naming layer and operation when one of n values is not finite.
  void finite(std::int64_t layer, const char* op, const float* p, std::int64_t n) const;

  const ForwardArgs& args;
  const ModelConfig& c;
  Backend& backend_;
  std::int64_t m;
  const float* rope = nullptr;  // [M, rotary / 2, 2] on the host
  float* h[2] = {};             // [M, hidden]; h[now] is the residual
  int now = 0;
  const float* delta = nullptr;  // [M, hidden] what the next fused operation adds to it
  float* delta_out = nullptr;    // where a half leaves what it adds
};

class HalfLayer {
 public:
  virtual ~HalfLayer() = default;
  virtual void run(Pass& p) const = 0;
};

// `layer`: its number in names and errors; `state`: its number in the KV cache or delta state.
std::unique_ptr<HalfLayer> load_attention(Loader& l, std::int64_t layer, std::int64_t state);
std::unique_ptr<HalfLayer> load_delta_net(Loader& l, std::int64_t layer, std::int64_t state);
std::unique_ptr<HalfLayer> load_mlp(Loader& l, std::int64_t layer);
std::unique_ptr<HalfLayer> load_moe(Loader& l, std::int64_t layer);

inline std::string layer_prefix(std::int64_t layer) {
  return fmt::format("model.layers.{}.", layer);
}

}  // namespace nibble
