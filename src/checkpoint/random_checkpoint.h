// A checkpoint without a file: the shapes of a published model and random INT4 weights, made as
// they are read, so that its speed can be measured before its weights are fetched.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace nibble {

struct TensorShape {
  std::string name;  // Hugging Face's; experts one by one
  std::vector<std::int64_t> shape;
  std::int64_t parameters() const;
};
// Every tensor that a text decoder of this configuration has, without biases.
std::vector<TensorShape> decoder_tensors(const ModelConfig& c);

// "qwen3.6-27b", "qwen3.6-35b-a3b", "qwen3.5-0.8b". UsageError naming those known.
ModelConfig known_config(std::string_view name);
std::vector<std::string> known_configs();

// Matrices in INT4, group 128, whose outputs are about as large as their inputs; the embedding
// too. The same on every machine.
std::unique_ptr<Checkpoint> random_checkpoint(const ModelConfig& config);

}  // namespace nibble
