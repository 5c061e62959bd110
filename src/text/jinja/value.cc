#include "text/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

constexpr std::size_t kObject = 64;  // bytes an object costs beside its payload

bool is_ascii(std::string_view s) {
  return std::all_of(s.begin(), s.end(), [](char c) { return static_cast<signed char>(c) >= 0; });
}

int checked_depth(Run& run, int inner) {
  if (inner >= Limits::nesting) run.fail("values nested more than {} deep", Limits::nesting);
  return inner + 1;
}

std::partial_ordering compare_numbers(const Value& a, const Value& b) {
  if (a.integer() && b.integer()) return a.as_int() <=> b.as_int();
  if (!a.integer() && !b.integer()) return a.as_double() <=> b.as_double();
  if (b.integer()) return 0 <=> compare_numbers(b, a);
  const std::int64_t i = a.as_int();  // exact: a large integer is not rounded to double first
  const double d = b.as_double();
  if (std::isnan(d)) return std::partial_ordering::unordered;
  if (d >= 0x1p63) return std::partial_ordering::less;
  if (d < -0x1p63) return std::partial_ordering::greater;
  const auto whole = static_cast<std::int64_t>(d);
  if (i != whole) return i <=> whole;
  return 0.0 <=> d - static_cast<double>(whole);
}

}  // namespace

std::int64_t Value::as_int() const {
  if (const auto* b = get<bool>()) return *b ? 1 : 0;
  return *get<std::int64_t>();
}
double Value::as_double() const {
  if (const auto* d = get<double>()) return *d;
  return static_cast<double>(as_int());
}
bool Value::list() const { return seq() != nullptr && seq()->type == Seq::Type::List; }
int Value::depth() const {
  if (const auto* s = seq()) return s->depth;
  if (const auto* d = dict()) return d->depth;
  if (const auto* g = get<GeneratorPtr>()) return (*g)->all->depth;
  return 0;
}

Value constant(std::string text) {
  auto s = std::make_shared<Str>();
  s->ascii = is_ascii(text);
  s->text = std::move(text);
  return StrPtr(std::move(s));
}

Value make_str(Run& run, std::string text, bool markup) {
  run.step();
  run.work(text.size());
  auto s = std::make_shared<Str>(Str{{}, markup, is_ascii(text), {run, kObject + text.size()}});
  s->text = std::move(text);
  return StrPtr(std::move(s));
}

Value make_seq(Run& run, Seq::Type type, std::vector<Value> items) {
  run.step(1 + items.size());
  int depth = 0;
  for (const Value& v : items) {
    require_data(run, v);
    depth = std::max(depth, v.depth());
  }
  const std::size_t bytes = kObject + items.size() * sizeof(Value);
  return SeqPtr(
      std::make_shared<Seq>(Seq{type, std::move(items), checked_depth(run, depth), {run, bytes}}));
}

Value make_list(Run& run, std::vector<Value> items) {
  return make_seq(run, Seq::Type::List, std::move(items));
}

Value make_generator(Run& run, std::vector<Value> items) {
  const Value all = make_list(run, std::move(items));
  return std::make_shared<Generator>(Generator{*all.get<SeqPtr>(), 0});
}

Value make_dict(Run& run, std::vector<std::pair<Value, Value>> items) {
  run.step(1 + items.size());
  auto d = std::make_shared<Dict>(Dict{{}, {}, 1, {run, kObject}});
  int depth = 0;
  for (auto& [key, value] : items) {
    require_data(run, value);
    depth = std::max({depth, key.depth(), value.depth()});
    std::string hash = hash_key(run, key);
    d->held.more(kObject + hash.size() + 2 * sizeof(Value));
    const auto [place, added] = d->index.emplace(std::move(hash), d->items.size());
    if (added)
      d->items.emplace_back(key, value);
    else
      d->items[place->second].second = value;
  }
  d->depth = checked_depth(run, depth);
  return DictPtr(std::move(d));
}

Value make_undefined(Run& run, std::string why) {
  return Undefined{*make_str(run, std::move(why)).get<StrPtr>()};
}

Value from_json(Run& run, const nlohmann::ordered_json& json, int depth) {
  checked_depth(run, depth);  // before recursing, not after
  switch (json.type()) {
    case nlohmann::json::value_t::null:
      return None{};
    case nlohmann::json::value_t::boolean:
      return json.get<bool>();
    case nlohmann::json::value_t::number_integer:
      return json.get<std::int64_t>();
    case nlohmann::json::value_t::number_unsigned: {
      const auto u = json.get<std::uint64_t>();
      if (u > INT64_MAX) run.fail("the number {} in the messages is beyond 64 bits", u);
      return static_cast<std::int64_t>(u);
    }
    case nlohmann::json::value_t::number_float:
      return json.get<double>();
    case nlohmann::json::value_t::string: {
      return make_str(run, json.get_ref<const std::string&>());
    }
    case nlohmann::json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& j : json) items.push_back(from_json(run, j, depth + 1));
      return make_list(run, std::move(items));
    }
    case nlohmann::json::value_t::object: {
      std::vector<std::pair<Value, Value>> items;
      items.reserve(json.size());
      for (const auto& [key, j] : json.items()) {
        items.emplace_back(make_str(run, key), from_json(run, j, depth + 1));
      }
      return make_dict(run, std::move(items));
    }
    default:
      run.fail("binary data in the messages");
  }
}

std::string_view type_name(const Value& v) {
  static constexpr std::string_view names[] = {"Undefined", "NoneType",  "bool",        "int",
                                               "float",     "str",       "list",        "dict",
                                               "generator", "Namespace", "LoopContext", "function"};
  static constexpr std::string_view seqs[] = {"list",       "tuple",     "range",
                                              "dict_items", "dict_keys", "dict_values"};
  if (v.seq() != nullptr) return seqs[static_cast<int>(v.seq()->type)];
  return names[v.data().index()];
}

bool truthy(const Value& v) {
  if (v.undefined() || v.is<None>()) return false;
  if (v.integer()) return v.as_int() != 0;
  if (const auto* d = v.get<double>()) return *d != 0;
  if (v.str() != nullptr) return !v.str()->text.empty();
  if (v.seq() != nullptr) return !v.seq()->items.empty();
  if (v.dict() != nullptr) return !v.dict()->items.empty();
  return true;
}

bool equal(Run& run, const Value& a, const Value& b) {
  run.step();
  if (a.number() && b.number()) return compare_numbers(a, b) == 0;
  if (a.data().index() != b.data().index()) return false;
  if (a.undefined() || a.is<None>()) return true;
  if (a.str() != nullptr) {
    run.work(a.str()->text.size());
    return a.str()->text == b.str()->text;
  }
  if (a.seq() != nullptr) {
    const Seq &x = *a.seq(), &y = *b.seq();
    if (x.type != y.type || x.items.size() != y.items.size()) return false;
    for (std::size_t i = 0; i < x.items.size(); ++i) {
      if (!equal(run, x.items[i], y.items[i])) return false;
    }
    return true;
  }
  if (a.dict() != nullptr) {
    const Dict &x = *a.dict(), &y = *b.dict();
    if (x.items.size() != y.items.size()) return false;
    for (const auto& [hash, place] : x.index) {
      const auto other = y.index.find(hash);
      if (other == y.index.end()) return false;
      if (!equal(run, x.items[place].second, y.items[other->second].second)) return false;
    }
    return true;
  }
  return std::visit(
      [&](const auto& x) {
        if constexpr (requires { x.get(); }) {
          return x.get() == std::get<std::decay_t<decltype(x)>>(b.data()).get();
        } else {
          return false;
        }
      },
      a.data());
}

std::partial_ordering compare(Run& run, const Value& a, const Value& b) {
  run.step();
  if (a.number() && b.number()) return compare_numbers(a, b);
  if (a.str() != nullptr && b.str() != nullptr) {  // bytes of UTF-8 order as code points do
    run.work(std::min(a.str()->text.size(), b.str()->text.size()));
    return a.str()->text.compare(b.str()->text) <=> 0;
  }
  const Seq *x = a.seq(), *y = b.seq();
  if (x != nullptr && y != nullptr && x->type == y->type && x->type <= Seq::Type::Tuple) {
    for (std::size_t i = 0; i < std::min(x->items.size(), y->items.size()); ++i) {
      if (!equal(run, x->items[i], y->items[i])) return compare(run, x->items[i], y->items[i]);
    }
    return x->items.size() <=> y->items.size();
  }
  for (const Value* v : {&a, &b}) {
    if (v->undefined()) run.fail("{}", v->get<Undefined>()->why->text);
  }
  run.fail("cannot order '{}' and '{}'", type_name(a), type_name(b));
}

bool contains(Run& run, const Value& container, const Value& item) {
  if (const Str* s = container.str()) {
    if (item.str() == nullptr) run.fail("'in <string>' needs a string, not {}", type_name(item));
    run.work(s->text.size());
    return find_text(s->text, item.str()->text) != std::string::npos;
  }
  if (const Dict* d = container.dict()) return find(run, *d, item) != nullptr;
  const SeqPtr all = elements(run, container);
  return std::any_of(all->items.begin(), all->items.end(),
                     [&](const Value& v) { return equal(run, v, item); });
}

std::int64_t length(Run& run, const Value& v) {
  if (v.undefined()) return 0;
  if (const Str* s = v.str()) {
    if (s->ascii) return static_cast<std::int64_t>(s->text.size());
    run.read(s->text.size());
    return static_cast<std::int64_t>(count_chars(s->text));
  }
  if (v.seq() != nullptr) return static_cast<std::int64_t>(v.seq()->items.size());
  if (v.dict() != nullptr) return static_cast<std::int64_t>(v.dict()->items.size());
  run.fail("a value of type '{}' has no length", type_name(v));
}

bool iterable(const Value& v) {
  return v.undefined() || v.str() != nullptr || v.seq() != nullptr || v.dict() != nullptr ||
         v.is<GeneratorPtr>();
}

SeqPtr elements(Run& run, const Value& v) {
  if (v.seq() != nullptr) return *v.get<SeqPtr>();
  std::vector<Value> items;
  if (const Str* s = v.str()) {
    for (std::size_t i = 0; i < s->text.size();) {
      const std::size_t n = char_at(s->text, i).bytes;
      items.push_back(make_str(run, s->text.substr(i, n)));
      i += n;
    }
  } else if (const Dict* d = v.dict()) {
    for (const auto& [key, value] : d->items) items.push_back(key);
  } else if (const auto* g = v.get<GeneratorPtr>()) {
    const auto from = std::exchange((*g)->next, (*g)->all->items.size());
    if (from == 0) return (*g)->all;
    items.assign((*g)->all->items.begin() + static_cast<std::ptrdiff_t>(from),
                 (*g)->all->items.end());
  } else if (!v.undefined()) {
    run.fail("a value of type '{}' cannot be iterated", type_name(v));
  }
  return *make_list(run, std::move(items)).get<SeqPtr>();
}

bool hashable(const Value& v) {
  if (v.number() || v.is<None>() || v.undefined() || v.str() != nullptr) return true;
  return v.seq() != nullptr && v.seq()->type == Seq::Type::Tuple &&
         std::all_of(v.seq()->items.begin(), v.seq()->items.end(), hashable);
}

std::string hash_key(Run& run, const Value& v) {
  run.step();
  if (const Str* s = v.str()) {
    run.work(s->text.size());
    return "s" + s->text;
  }
  if (v.is<None>()) return "n";
  if (v.undefined()) return "u";
  if (const auto* d = v.get<double>()) {
    if (*d != std::trunc(*d) || std::fabs(*d) >= 0x1p63) return fmt::format("f{}", *d);
    return fmt::format("i{}", static_cast<std::int64_t>(*d));
  }
  if (v.integer()) return fmt::format("i{}", v.as_int());
  if (v.seq() != nullptr && v.seq()->type == Seq::Type::Tuple) {
    std::string out = "t";
    for (const Value& item : v.seq()->items) {
      const std::string part = hash_key(run, item);
      run.append(out, fmt::format("{}:", part.size()));
      run.append(out, part);
    }
    return out;
  }
  run.fail("a value of type '{}' cannot be a dict key", type_name(v));
}

const Value* Dict::find(std::string_view text_key) const {
  const auto place = index.find(fmt::format("s{}", text_key));
  return place == index.end() ? nullptr : &items[place->second].second;
}

const Value* find(Run& run, const Dict& dict, const Value& key) {
  const auto place = dict.index.find(hash_key(run, key));
  return place == dict.index.end() ? nullptr : &dict.items[place->second].second;
}

void require_data(Run& run, const Value& v) {
  if (v.is<NamespacePtr>() || v.is<LoopPtr>() || v.is<CallablePtr>()) {
    run.fail("a value of type '{}' inside a container is not supported", type_name(v));
  }
}

}  // namespace nibble::jinja
