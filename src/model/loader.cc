#include "model/loader.h"

#include <algorithm>

#include "model/model.h"

namespace nibble {

Loader::Loader(const Checkpoint& checkpoint, Backend& backend, std::int64_t max_rows,
               const std::function<void(double)>& progress)
    : checkpoint_(checkpoint),
      backend_(backend),
      max_rows_(max_rows),
      progress_(progress),
      total_(progress ? static_cast<double>(estimate_weight_bytes(checkpoint)) : 0) {}

void Loader::count(std::uint64_t bytes) {
  kept.weight_bytes += bytes;
  if (progress_ && total_ > 0)
    progress_(std::min(1.0, static_cast<double>(kept.weight_bytes) / total_));
}

std::unique_ptr<Weight> Loader::matrix(const std::string& name, std::int64_t n, std::int64_t k,
                                       int pieces) {
  auto w = backend_.pack(*checkpoint_.weight(name, n, k), pieces);
  count(w->bytes());
  return w;
}

std::unique_ptr<Weight> Loader::experts(const std::string& prefix, const std::string& name,
                                        std::int64_t n, std::int64_t k, int pieces) {
  const MoeConfig& moe = config().moe;
  std::vector<std::unique_ptr<WeightSource>> parts;
  for (std::int64_t e = 0; e < moe.experts; ++e)
    parts.push_back(checkpoint_.weight(fmt::format("{}{}.{}", prefix, e, name), n, k));
  auto w = backend_.pack(WeightStack(prefix + name, std::move(parts)), pieces, moe.experts);
  count(w->bytes());
  const auto experts = static_cast<std::uint64_t>(moe.experts);
  kept.idle_bytes += w->bytes() / experts * (experts - static_cast<std::uint64_t>(moe.top_k));
  return w;
}

Backend::Buffer Loader::upload(const std::vector<float>& values) {
  const std::size_t bytes = values.size() * sizeof(float);
  Backend::Buffer b = backend_.alloc(bytes);
  backend_.upload(b.get(), values.data(), bytes);
  count(bytes);
  return b;
}

Backend::Buffer Loader::vector(const std::string& name, std::int64_t size) {
  return upload(checkpoint_.vector(name, size));
}

float* Loader::scratch(const std::string& name, std::int64_t width) {
  Backend::Buffer& b = kept.scratch[name];
  if (!b) {
    const auto bytes = static_cast<std::size_t>(max_rows_ * width) * sizeof(float);
    b = backend_.alloc(bytes);
    kept.scratch_bytes += bytes;
  }
  return reinterpret_cast<float*>(b.get());
}

std::uint64_t estimate_weight_bytes(const Checkpoint& checkpoint) {
  std::uint64_t bytes = 0;
  for (const TensorInfo& t : checkpoint.tensors())
    if (t.shape.size() == 2 && checkpoint.has(t.name))
      bytes += checkpoint.weight(t.name, t.shape[0], t.shape[1])->format().bytes();
  return bytes;
}

// What the layers ask of scratch().
std::uint64_t activation_bytes(const ModelConfig& c, std::int64_t max_rows) {
  const std::int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  std::int64_t width = 3 * c.hidden;
  if (c.attention_layers() > 0) width += (c.hybrid() ? 4 : 3) * q + 2 * kv;
  if (c.attention_layers() < c.layers)
    width += 2 * (c.delta.channels() + c.delta.value_width() + c.delta.value_heads);
  width += c.moe.experts > 0 ? c.hidden + c.moe.experts + 1 + 2 * c.moe.top_k : c.intermediate;
  return static_cast<std::uint64_t>(max_rows * width) * sizeof(float);
}

}  // namespace nibble
