// The values of a template: Python's, as far as templates can tell.
//
// Values are immutable and shared, except a namespace (and a generator, which is read once).
// Containers hold only data, never a namespace, loop, macro or method: so there are no cycles,
// and their depth, counted when they are made, bounds every recursion over them.
#pragma once
#include <compare>
#include <concepts>
#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "text/jinja/run.h"

namespace nibble::jinja {

struct Str;
struct Seq;
struct Dict;
struct Generator;
struct Namespace;
struct Loop;
struct Callable;
using StrPtr = std::shared_ptr<const Str>;
using SeqPtr = std::shared_ptr<const Seq>;
using DictPtr = std::shared_ptr<const Dict>;
using GeneratorPtr = std::shared_ptr<Generator>;
using NamespacePtr = std::shared_ptr<Namespace>;
using LoopPtr = std::shared_ptr<Loop>;
using CallablePtr = std::shared_ptr<const Callable>;

struct None {};
struct Undefined {
  StrPtr why;  // what the error says when it is used
};

class Value {
 public:
  using Data = std::variant<Undefined, None, bool, std::int64_t, double, StrPtr, SeqPtr, DictPtr,
                            GeneratorPtr, NamespacePtr, LoopPtr, CallablePtr>;
  Value() = default;  // undefined
  template <class T>
  requires(!std::same_as<T, Value> && !std::integral<T> && std::constructible_from<Data, T>)
      Value(T v)
      : data_(std::move(v)) {}
  template <std::integral T>
  Value(T v) {
    if constexpr (std::same_as<T, bool>)
      data_ = v;
    else
      data_ = static_cast<std::int64_t>(v);
  }

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(data_);
  }
  template <class T>
  const T* get() const {
    return std::get_if<T>(&data_);
  }
  const Str* str() const { return pointer<StrPtr>(); }
  const Seq* seq() const { return pointer<SeqPtr>(); }
  const Dict* dict() const { return pointer<DictPtr>(); }
  bool undefined() const { return is<Undefined>(); }
  bool number() const { return is<bool>() || is<std::int64_t>() || is<double>(); }
  bool integer() const { return is<bool>() || is<std::int64_t>(); }  // Python: bool is an int
  std::int64_t as_int() const;                                       // of integer()
  double as_double() const;                                          // of number()
  bool list() const;
  int depth() const;  // 0: scalar; 1: list of scalars; ...
  const Data& data() const { return data_; }

 private:
  template <class P>
  const typename P::element_type* pointer() const {
    const auto* p = std::get_if<P>(&data_);
    return p != nullptr ? p->get() : nullptr;
  }
  Data data_;
};

struct Str {
  std::string text;
  bool markup = false;  // |safe: escapes what is added to it with +, as markupsafe does
  bool ascii = false;   // then bytes are code points
  Held held;
};

struct Seq {
  enum class Type { List, Tuple, Range, Items, Keys, Values };
  Type type = Type::List;
  std::vector<Value> items;
  int depth = 1;
  Held held;
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in order of insertion
  std::map<std::string, std::size_t> index;    // hash_key() -> place in items
  int depth = 1;
  Held held;
  const Value* find(std::string_view text_key) const;  // null if absent
};

// What map, select, items... return: its elements can be read once.
struct Generator {
  SeqPtr all;
  std::size_t next = 0;
};

struct Namespace {
  std::map<std::string, Value> attributes;
  Held held;
};

Value make_str(Run& run, std::string text, bool markup = false);
Value make_seq(Run& run, Seq::Type type, std::vector<Value> items);
Value make_list(Run& run, std::vector<Value> items);
Value make_generator(Run& run, std::vector<Value> items);
Value make_dict(Run& run, std::vector<std::pair<Value, Value>> items);  // later keys win
Value make_undefined(Run& run, std::string why);
Value constant(std::string text);  // of a template's source: lives outside any run
Value from_json(Run& run, const nlohmann::ordered_json& json, int depth = 0);

std::string_view type_name(const Value& v);  // as Python: str, int, NoneType ...
bool truthy(const Value& v);
bool equal(Run& run, const Value& a, const Value& b);
// Fails for what Python cannot order.
std::partial_ordering compare(Run& run, const Value& a, const Value& b);
bool contains(Run& run, const Value& container, const Value& item);
// Number of elements (code points of a string); fails for what has no length.
std::int64_t length(Run& run, const Value& v);
bool iterable(const Value& v);
// The elements of anything iterable; uses up a generator. Fails naming the type otherwise.
SeqPtr elements(Run& run, const Value& v);
// Text equal exactly for keys that Python takes as the same; fails for what cannot be a key.
std::string hash_key(Run& run, const Value& v);
bool hashable(const Value& v);
const Value* find(Run& run, const Dict& dict, const Value& key);  // null if absent
// Fails unless v may be put into a container.
void require_data(Run& run, const Value& v);

}  // namespace nibble::jinja
