// The files beside the weights of a quantised checkpoint: configuration, tokenizer, template.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/quantize_plan.h"

namespace nibble {

struct ExportedFile {
  std::string name, text;
};

// config.json with its quantization_config, and what else a Hugging Face directory holds: taken
// over from one, or made from a GGUF file's metadata. Error naming what cannot be expressed there.
std::vector<ExportedFile> export_files(const Checkpoint& checkpoint,
                                       const std::filesystem::path& source,
                                       const QuantizePlan& plan, const QuantizeOptions& options);

// config.json for a model without one. embedding: the type of the values that stay plain. Error
// when Hugging Face's classes cannot express `config`.
std::string config_json(const ModelConfig& config, const GenerationConfig& generation, DType plain);

// tokenizer.json (byte-level BPE, as Hugging Face `tokenizers` reads it) that gives the same ids as
// `spec`. Error when no such file can.
std::string tokenizer_json(const TokenizerSpec& spec);

}  // namespace nibble
