// The fields of config.json that only hybrid models have: Qwen3.5 and 3.6, whose layers are gated
// delta nets and, every few, gated attention; with an MLP or a mixture of experts.
#pragma once
#include <string_view>

#include "checkpoint/config.h"
#include "checkpoint/json.h"

namespace nibble {

inline constexpr double kHybridRotary = 0.25;  // what the class rotates when the file is silent

bool is_hybrid(std::string_view architecture);
// Layer kinds, delta net and experts; m.architecture, layers and heads are set. Error naming the
// field.
void read_hybrid(const JsonFields& c, ModelConfig& m);
// RoPE over this part of m.head_dim. Error unless that is an even number of dims.
void set_rotary(double factor, std::string_view where, ModelConfig& m);
// Sizes against each other; Error naming `where`.
void check_hybrid(const ModelConfig& m, std::string_view where);

}  // namespace nibble
