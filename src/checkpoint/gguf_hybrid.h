// GGUF files of hybrid models (architectures qwen35 and qwen35moe), and what llama.cpp's converter
// changed in them, undone: value heads in tiled order, norms stored as 1 + weight, decay rates as
// -exp(A_log), experts stacked.
#pragma once
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/gguf.h"

namespace nibble {

// The order of a tensor's rows or columns in a file, against Hugging Face's. From `first` on they
// belong to value heads, `unit` each: Hugging Face's head h, the (h % r)-th of key head h / r, is
// the file's head (h % r) * key_heads + h / r.
struct HeadOrder {
  std::int64_t first = 0, unit = 0;  // unit 0: as stored
  std::int64_t key_heads = 1, ratio = 1;
  std::int64_t stored(std::int64_t i) const {
    if (unit == 0 || i < first) return i;
    const std::int64_t h = (i - first) / unit, in_head = (i - first) % unit;
    return first + (h % ratio * key_heads + h / ratio) * unit + in_head;
  }
};
// Of a tensor by its Hugging Face name.
HeadOrder row_order(std::string_view name, const ModelConfig& c);
HeadOrder column_order(std::string_view name, const ModelConfig& c);

// Stored vector values -> Hugging Face's.
void undo_converter(std::string_view name, std::vector<float>& values);

bool is_hybrid_gguf(std::string_view architecture);
// The hybrid part of the configuration; layers, heads and head_dim are set. Error naming the key.
void read_hybrid(const Gguf& file, std::string_view architecture, ModelConfig& m);
// The layer that a tensor of this name is of; -1: none.
int layer_of(std::string_view name);
// Layers of multi-token prediction, which the block count includes.
std::int64_t prediction_layers(const Gguf& file, std::string_view architecture);

// Tensor of the file -> Hugging Face names and tensors: one, or one an expert, cut and squeezed as
// the decoder takes them. Empty: the tensor has no place in a hybrid model. made: owns new tensors.
std::vector<std::pair<std::string, const GgufTensor*>> hybrid_tensors(const GgufTensor& t,
                                                                      std::int64_t experts,
                                                                      std::deque<GgufTensor>& made);

}  // namespace nibble
