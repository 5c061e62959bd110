// What a GGUF file says about its model: configuration, generation defaults, tokenizer, names.
#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "checkpoint/config.h"
#include "checkpoint/gguf.h"
#include "text/tokenizer.h"

namespace nibble {

// Error naming the key that is missing, impossible or not supported.
ModelConfig gguf_config(const Gguf& file);
GenerationConfig gguf_generation(const Gguf& file);
std::optional<TokenizerSpec> gguf_tokenizer(const Gguf& file);

// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; "" for a tensor that no
// supported architecture has.
std::string gguf_to_hf_name(std::string_view name);

}  // namespace nibble
