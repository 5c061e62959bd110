// Global functions, and how arguments are bound to parameters.
#include <algorithm>
#include <ctime>

#include "text/jinja/interp.h"
#include "text/jinja/print.h"

namespace nibble::jinja {

Params::Params(Run& run, std::string_view what, const Args& args,
               std::initializer_list<std::string_view> names, std::size_t required)
    : run_(run), what_(what), values_(names.size(), nullptr) {
  if (args.positional.size() > names.size()) {
    run.fail("'{}' takes at most {} arguments, not {}", what, names.size(), args.positional.size());
  }
  for (std::size_t i = 0; i < args.positional.size(); ++i) values_[i] = &args.positional[i];
  for (const auto& [name, v] : args.named) {
    const auto place = std::find(names.begin(), names.end(), name);
    if (place == names.end()) run.fail("'{}' has no parameter '{}'", what, name.substr(0, 40));
    const Value*& slot = values_[static_cast<std::size_t>(place - names.begin())];
    if (slot != nullptr) run.fail("'{}' got two values for '{}'", what, name);
    slot = &v;
  }
  for (std::size_t i = 0; i < required; ++i) {
    if (values_[i] == nullptr) run.fail("'{}' needs the argument '{}'", what, names.begin()[i]);
  }
}

std::int64_t Params::integer(std::size_t i, std::int64_t otherwise) const {
  if (!given(i)) return otherwise;
  if (!values_[i]->integer()) {
    run_.fail("'{}' needs an integer, not {}", what_, type_name(*values_[i]));
  }
  return values_[i]->as_int();
}

bool Params::flag(std::size_t i, bool otherwise) const {
  return values_[i] == nullptr ? otherwise : truthy(*values_[i]);
}

std::string_view Params::text(std::size_t i, std::string_view otherwise) const {
  if (!given(i)) return otherwise;
  if (values_[i]->str() == nullptr) {
    run_.fail("'{}' needs a string, not {}", what_, type_name(*values_[i]));
  }
  return values_[i]->str()->text;
}

StrPtr as_str(Run& run, const Value& v) {
  if (const auto* s = v.get<StrPtr>()) return *s;
  return *make_str(run, to_text(run, v)).get<StrPtr>();
}

namespace {

Value range(Interp& in, const Value&, const Args& args) {
  const Params p(in.run, "range", args, {"start", "stop", "step"}, 1);
  std::int64_t start = p.integer(0, 0), stop = p.integer(1, 0);
  if (p.get(1) == nullptr) stop = std::exchange(start, 0);
  const std::int64_t step = p.integer(2, 1);
  if (step == 0) in.run.fail("range() with a step of 0");
  // Of unsigned magnitudes, since stop - start may not fit.
  const bool up = step > 0;
  std::uint64_t count = 0;
  if (up ? start < stop : start > stop) {
    const auto a = static_cast<std::uint64_t>(start), b = static_cast<std::uint64_t>(stop);
    const auto s = static_cast<std::uint64_t>(step);
    count = ((up ? b - a : a - b) - 1) / (up ? s : 0 - s) + 1;
  }
  if (count > static_cast<std::uint64_t>(Limits::range)) {
    in.run.fail("a range of more than {} numbers", Limits::range);
  }
  std::vector<Value> items;
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto distance = i * static_cast<std::uint64_t>(step);  // of which the sum fits again
    items.push_back(static_cast<std::int64_t>(static_cast<std::uint64_t>(start) + distance));
  }
  return make_seq(in.run, Seq::Type::Range, std::move(items));
}

// The items of dict(mapping or pairs, name=value...).
std::vector<std::pair<Value, Value>> dict_items(Interp& in, const Args& args) {
  std::vector<std::pair<Value, Value>> items;
  if (args.positional.size() > 1) in.run.fail("'dict' takes at most one positional argument");
  for (const Value& v : args.positional) {
    if (v.dict() != nullptr) {
      items = v.dict()->items;
      continue;
    }
    const SeqPtr all = elements(in.run, v);
    for (const Value& pair : all->items) {
      const SeqPtr two = elements(in.run, pair);
      if (two->items.size() != 2) in.run.fail("'dict' needs pairs");
      items.emplace_back(two->items[0], two->items[1]);
    }
  }
  for (const auto& [name, v] : args.named) items.emplace_back(make_str(in.run, name), v);
  return items;
}

Value dict(Interp& in, const Value&, const Args& args) {
  return make_dict(in.run, dict_items(in, args));
}

Value make_namespace(Interp& in, const Value&, const Args& args) {
  const auto ns = std::make_shared<Namespace>(Namespace{{}, {in.run, 128}});
  for (auto& [key, v] : dict_items(in, args)) {
    if (key.str() == nullptr) continue;  // Python keeps it out of reach
    require_data(in.run, v);
    ns->held.more(128 + key.str()->text.size());
    ns->attributes.insert_or_assign(key.str()->text, v);
  }
  return ns;
}

Value raise_exception(Interp& in, const Value&, const Args& args) {
  const Params p(in.run, "raise_exception", args, {"message"}, 1);
  in.run.fail("{}", to_text(in.run, p.at(0)));
}

Value strftime_now(Interp& in, const Value&, const Args& args) {
  const Params p(in.run, "strftime_now", args, {"format"}, 1);
  const std::string format = std::string(p.text(0, "")) + "!";  // so that nothing is an error
  if (format.size() > 256) in.run.fail("a date format of more than 256 bytes");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  char text[8192];
  const std::size_t n = std::strftime(text, sizeof text, format.c_str(), &local);
  if (n == 0) in.run.fail("a date longer than {} bytes", sizeof text);
  return make_str(in.run, std::string(text, n - 1));
}

Value cycle(Interp& in, const Value& self, const Args& args) {
  if (args.positional.empty()) in.run.fail("loop.cycle() needs something to cycle through");
  const auto n = static_cast<std::int64_t>(args.positional.size());
  const std::int64_t at = std::max<std::int64_t>((*self.get<LoopPtr>())->index0, 0) % n;
  return args.positional[static_cast<std::size_t>(at)];
}

Value changed(Interp& in, const Value& self, const Args& args) {
  Loop& loop = **self.get<LoopPtr>();
  const Value now = make_seq(in.run, Seq::Type::Tuple, args.positional);
  const bool differs = !loop.changed.has_value() || !equal(in.run, *loop.changed, now);
  loop.changed = now;
  return differs;
}

Value get(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "get", args, {"key", "default"}, 1);
  const Value* v = find(in.run, *self.dict(), p.at(0));
  if (v != nullptr) return *v;
  return p.get(1) != nullptr ? *p.get(1) : Value(None{});
}

template <Seq::Type type>
Value view(Interp& in, const Value& self, const Args& args) {
  const Params none(in.run, "items, keys and values", args, {});
  std::vector<Value> out;
  for (const auto& [key, v] : self.dict()->items) {
    if (type == Seq::Type::Keys)
      out.push_back(key);
    else if (type == Seq::Type::Values)
      out.push_back(v);
    else
      out.push_back(make_seq(in.run, Seq::Type::Tuple, {key, v}));
  }
  return make_seq(in.run, type, std::move(out));
}

Value same(Interp& in, const Value& self, const Args& args) {
  const Params none(in.run, "copy", args, {});
  return self;
}

Value seq_index(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "index", args, {"value"}, 1);
  const auto& items = self.seq()->items;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (equal(in.run, items[i], p.at(0))) return i;
  }
  in.run.fail("index(): the value is not in the {}", type_name(self));
}

Value seq_count(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "count", args, {"value"}, 1);
  std::int64_t n = 0;
  for (const Value& v : self.seq()->items) n += equal(in.run, v, p.at(0)) ? 1 : 0;
  return n;
}

template <std::size_t N>
bool among(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

}  // namespace

Builtin find_function(std::string_view name) {
  static constexpr BuiltinEntry functions[] = {
      {"range", range},
      {"dict", dict},
      {"namespace", make_namespace},
      {"raise_exception", raise_exception},
      {"strftime_now", strftime_now},
  };
  for (const auto& f : functions) {
    if (f.name == name) return f.function;
  }
  return nullptr;
}

Method find_method(const Value& object, std::string_view name) {
  if (object.str() != nullptr) {
    static constexpr std::string_view others[] = {
        "casefold",  "encode",      "expandtabs", "format_map", "isascii",  "isidentifier",
        "isnumeric", "isprintable", "istitle",    "maketrans",  "swapcase", "translate"};
    const Builtin f = find_str_method(name);
    return {f != nullptr || among(others, name), false, f};
  }
  if (object.dict() != nullptr) {
    static constexpr std::string_view mutating[] = {"clear", "pop", "popitem", "setdefault",
                                                    "update"};
    if (name == "get") return {true, false, get};
    if (name == "items") return {true, false, view<Seq::Type::Items>};
    if (name == "keys") return {true, false, view<Seq::Type::Keys>};
    if (name == "values") return {true, false, view<Seq::Type::Values>};
    if (name == "copy") return {true, false, same};
    return {name == "fromkeys" || among(mutating, name), among(mutating, name), nullptr};
  }
  if (const Seq* s = object.seq(); s != nullptr && s->type <= Seq::Type::Range) {
    static constexpr std::string_view mutating[] = {"append", "clear",  "extend",  "insert",
                                                    "pop",    "remove", "reverse", "sort"};
    if (name == "index") return {true, false, seq_index};
    if (name == "count") return {true, false, seq_count};
    if (!object.list()) return {};
    if (name == "copy") return {true, false, same};
    return {among(mutating, name), among(mutating, name), nullptr};
  }
  if (object.is<LoopPtr>()) {
    if (name == "cycle") return {true, false, cycle};
    if (name == "changed") return {true, false, changed};
  }
  return {};
}

}  // namespace nibble::jinja
