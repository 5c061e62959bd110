// JSON files of a checkpoint: a strict parse, and typed fields whose errors name file and field.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace nibble {

using Json = nlohmann::json;

// Parses an object. Error naming `where` on bad syntax or UTF-8, a key given twice, more than 64
// levels or 32 MiB, or another kind of value at the top.
Json parse_json_object(std::string_view text, std::string_view where);

// The fields of one JSON object; null counts as missing. `where` names the file (and the object
// inside it) in errors.
class JsonFields {
 public:
  JsonFields(const Json& object, std::string where);
  const std::string& where() const { return where_; }
  const Json* find(std::string_view key) const;   // nullptr: missing or null
  JsonFields object(std::string_view key) const;  // Error when missing or no object
  // Error when missing (the first) or not an integer in [low, high].
  std::int64_t integer(std::string_view key, std::int64_t low, std::int64_t high) const;
  std::int64_t integer_or(std::string_view key, std::int64_t fallback, std::int64_t low,
                          std::int64_t high) const;
  // A number in [low, high], or Error.
  double number(std::string_view key, double low, double high) const;
  double number_or(std::string_view key, double fallback, double low, double high) const;
  bool boolean_or(std::string_view key, bool fallback) const;
  std::string string_or(std::string_view key, std::string_view fallback) const;

 private:
  const Json* object_;  // outlives this
  std::string where_;
};

}  // namespace nibble
