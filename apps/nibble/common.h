// What several commands share: opening and loading a model, and their options.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "engine/engine.h"
#include "text/tokenizer.h"
#include "verify/cases.h"

namespace nibble::cli {

struct ModelFlags {
  std::string path;
  bool keep_16bit = false;
  std::string activations = "int16", device = "cpu";
  int threads = 0;
  std::int64_t context = 0;
  bool exact_prefill = false, check_finite = false;
};

void add_model(CLI::App& cmd, ModelFlags& flags);  // MODEL, --keep-16bit
void add_device(CLI::App& cmd,
                ModelFlags& flags);             // --activations, --device and what belongs to them
void add_threads(CLI::App& cmd, int& threads);  // --threads
void add_context(CLI::App& cmd, std::int64_t& context);  // --context

// Opens the checkpoint and passes its notices on to stderr.
std::unique_ptr<Checkpoint> open_model(const ModelFlags& flags);
// Loads the weights, showing progress. context: positions of the one slot where the user gave no
// --context; 0 leaves it to the engine.
std::unique_ptr<Engine> load_engine(const Checkpoint& checkpoint, const ModelFlags& flags,
                                    std::int64_t context = 0, int slots = 1);
// Throws Error when the checkpoint has no tokenizer.
Tokenizer load_tokenizer(const Checkpoint& checkpoint, const ModelFlags& flags);

std::string cpu_model();
// "8704x5120" in INT4. Throws UsageError naming --shape.
verify::Case parse_shape(const std::string& text);

}  // namespace nibble::cli
