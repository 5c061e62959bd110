// Committed tokenizers and their cases, made by tests/data/tokenizer/make_cases.py.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "base/file.h"
#include "text/tokenizer.h"

namespace nibble {

inline std::string tokenizer_data(const std::string& name) {
  return read_file(std::string(NIBBLE_TEST_DATA) + "/tokenizer/" + name);
}
inline TokenizerSpec committed_spec(const std::string& name) {
  return tokenizer_spec_from_json(tokenizer_data(name + ".json"), name + ".json");
}
inline nlohmann::json committed_cases(const std::string& name) {
  return nlohmann::json::parse(tokenizer_data(name + "_cases.json"));
}

}  // namespace nibble
