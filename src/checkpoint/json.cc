#include "checkpoint/json.h"

#include <unordered_set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "checkpoint/names.h"

namespace nibble {

Json parse_json_object(std::string_view text, std::string_view where) {
  constexpr int kMaxDepth = 64;
  constexpr std::size_t kMaxBytes = 32u << 20;  // the index of 100,000 tensors has 11 MB
  require(text.size() <= kMaxBytes, "{}: {} bytes of JSON are more than the {} expected here",
          where, text.size(), kMaxBytes);
  std::vector<std::unordered_set<std::string>> keys;  // of the open objects
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start)
      require(depth < kMaxDepth, "{}: JSON nested deeper than {} levels", where, kMaxDepth);
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      require(keys.back().insert(key).second, "{}: the key {} is given twice", where, quote(key));
    }
    return true;
  };
  Json json;
  try {
    json = Json::parse(text.begin(), text.end(), check);
  } catch (const Json::exception& e) {
    fail("{}: not valid JSON: {}", where, quote(e.what()));
  }
  require(json.is_object(), "{}: expected a JSON object", where);
  return json;
}

JsonFields::JsonFields(const Json& object, std::string where)
    : object_(&object), where_(std::move(where)) {
  require(object.is_object(), "{}: expected a JSON object", where_);
}

const Json* JsonFields::find(std::string_view key) const {
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

JsonFields JsonFields::object(std::string_view key) const {
  const Json* v = find(key);
  require(v != nullptr, "{}: the field \"{}\" is missing", where_, key);
  return JsonFields(*v, fmt::format("{}: {}", where_, key));
}

std::int64_t JsonFields::integer(std::string_view key, std::int64_t low, std::int64_t high) const {
  const Json* v = find(key);
  require(v != nullptr, "{}: the field \"{}\" is missing", where_, key);
  const bool fits =
      v->is_number_integer() && (!v->is_number_unsigned() || v->get<std::uint64_t>() <= INT64_MAX);
  const std::int64_t x = fits ? v->get<std::int64_t>() : 0;
  require(fits && x >= low && x <= high, "{}: \"{}\" must be an integer from {} to {}, got {}",
          where_, key, low, high, quote(v->dump()));
  return x;
}

std::int64_t JsonFields::integer_or(std::string_view key, std::int64_t fallback, std::int64_t low,
                                    std::int64_t high) const {
  return find(key) == nullptr ? fallback : integer(key, low, high);
}

double JsonFields::number(std::string_view key, double low, double high) const {
  const Json* v = find(key);
  require(v != nullptr, "{}: the field \"{}\" is missing", where_, key);
  const double x = v->is_number() ? v->get<double>() : 0;
  require(v->is_number() && x >= low && x <= high,
          "{}: \"{}\" must be a number from {} to {}, got {}", where_, key, low, high,
          quote(v->dump()));
  return x;
}

double JsonFields::number_or(std::string_view key, double fallback, double low, double high) const {
  return find(key) == nullptr ? fallback : number(key, low, high);
}

bool JsonFields::boolean_or(std::string_view key, bool fallback) const {
  const Json* v = find(key);
  if (v == nullptr) return fallback;
  require(v->is_boolean(), "{}: \"{}\" must be true or false, got {}", where_, key,
          quote(v->dump()));
  return v->get<bool>();
}

std::string JsonFields::string_or(std::string_view key, std::string_view fallback) const {
  const Json* v = find(key);
  if (v == nullptr) return std::string(fallback);
  require(v->is_string(), "{}: \"{}\" must be a string, got {}", where_, key, quote(v->dump()));
  return v->get<std::string>();
}

}  // namespace nibble
