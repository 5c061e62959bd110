// A model on disk: a Hugging Face directory (safetensors, sharded or not, plain or
// compressed-tensors `pack-quantized`) or a GGUF file, behind one interface. Tensors go by their
// Hugging Face names ("model.layers.0.self_attn.q_proj.weight"), whatever the file calls them,
// and in Hugging Face row order (llama-architecture GGUF stores q and k permuted: undone here).
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/config.h"
#include "int4/weight.h"
#include "text/tokenizer.h"

namespace nibble {

struct TensorInfo {
  std::string name;         // Hugging Face name of the logical tensor
  std::string stored_type;  // as the file says: "BF16", "Q4_1", "int4 g128", ...
  std::vector<std::int64_t> shape;
  std::uint64_t bytes = 0;  // on disk, all parts of it
  std::string note;         // e.g. "requantised to int4 group 32 at load"; usually empty
};

// Tensors that are no part of the text decoder, left out of everything.
struct SkippedTensors {
  std::string what;  // "vision", "multi-token prediction"
  std::uint64_t tensors = 0, parameters = 0, bytes = 0;
};

struct OpenOptions {
  // GGUF Q5_1, Q5_K and Q6_K fit no kernel: requantised to int8 group 32, or with this rounded to
  // fp16. (The other types run exactly as stored, Q5_0 as int8 and Q4_K as affine int4.)
  bool keep_16bit = false;
};

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  // Opens and validates everything but the values. Throws Error naming file, tensor and remedy.
  static std::unique_ptr<Checkpoint> open(const std::filesystem::path& path,
                                          const OpenOptions& options = {});

  virtual std::string format() const = 0;  // "gguf v3", "safetensors", "compressed-tensors"
  virtual const ModelConfig& config() const = 0;
  virtual const GenerationConfig& generation() const = 0;
  virtual std::vector<TensorInfo> tensors() const = 0;
  virtual bool has(std::string_view name) const = 0;
  // A 2-D tensor, [n, k] as expected by the caller; Error when missing or of another shape.
  virtual std::unique_ptr<WeightSource> weight(std::string_view name, std::int64_t n,
                                               std::int64_t k) const = 0;
  // A 1-D tensor of `size` elements as fp32, or the taps [n, 1, t] of a depthwise convolution, row
  // by row; Error when missing, of another size or not finite.
  virtual std::vector<float> vector(std::string_view name, std::int64_t size) const = 0;
  // nullopt: the checkpoint carries none.
  virtual std::optional<TokenizerSpec> tokenizer() const = 0;
  virtual std::optional<std::string> chat_template() const = 0;
  // Lines a user should see (requantised tensors and the like).
  virtual std::vector<std::string> notices() const = 0;
  virtual std::vector<SkippedTensors> skipped() const { return {}; }
};

}  // namespace nibble
