// What the layers of a decoder take their weights and buffers from while it is loaded.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "checkpoint/checkpoint.h"

namespace nibble {

class Loader {
 public:
  // progress (may be empty) is told the fraction of the checkpoint's bytes that is loaded.
  Loader(const Checkpoint& checkpoint, Backend& backend, std::int64_t max_rows,
         const std::function<void(double)>& progress);

  const ModelConfig& config() const { return checkpoint_.config(); }
  const Checkpoint& checkpoint() const { return checkpoint_; }
  Backend& backend() const { return backend_; }

  // The matrix [n, k], packed. pieces: ops/pieces.h.
  std::unique_ptr<Weight> matrix(const std::string& name, std::int64_t n, std::int64_t k,
                                 int pieces = 1);
  // `name` of all experts of a layer, prefix.EXPERT.name, each [n, k]: one stack.
  std::unique_ptr<Weight> experts(const std::string& prefix, const std::string& name,
                                  std::int64_t n, std::int64_t k, int pieces);
  Backend::Buffer vector(const std::string& name, std::int64_t size);
  Backend::Buffer upload(const std::vector<float>& values);
  // [max_rows, width] floats. All who ask for one name get one buffer, which is theirs while their
  // layer runs: layers run one after the other.
  float* scratch(const std::string& name, std::int64_t width);

  // Moved into the decoder when all is loaded.
  struct Kept {
    std::map<std::string, Backend::Buffer> scratch;
    std::uint64_t weight_bytes = 0, scratch_bytes = 0;
    std::uint64_t idle_bytes = 0;  // of the weights, what one row's decode does not read
  };
  Kept kept;

 private:
  void count(std::uint64_t bytes);

  const Checkpoint& checkpoint_;
  Backend& backend_;
  std::int64_t max_rows_;
  std::function<void(double)> progress_;
  double total_;
};

inline const float* f32(const Backend::Buffer& b) {
  return reinterpret_cast<const float*>(b.get());
}

}  // namespace nibble
