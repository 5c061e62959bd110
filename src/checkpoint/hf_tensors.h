// Tensors of a Hugging Face checkpoint that are not what the decoder asks for: some are left out,
// some are cut up.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/packed.h"

namespace nibble {

// "vision", "multi-token prediction", or "" for a tensor of the decoder; by its stored name.
std::string_view skipped_part(std::string_view stored_name);

// A stack of experts' matrices -> one tensor an expert, by the names that checkpoints use which
// store them one by one:
//   X.mlp.experts.gate_up_proj [E, 2 I, K]  ->  X.mlp.experts.E.{gate_proj,up_proj}.weight [I, K]
//   X.mlp.experts.down_proj [E, K, I]       ->  X.mlp.experts.E.down_proj.weight [K, I]
// Empty for every other tensor. Error when the shape is another.
std::vector<std::pair<std::string, Part>> split_experts(const std::string& name, const Part& stack,
                                                        std::int64_t experts);

}  // namespace nibble
