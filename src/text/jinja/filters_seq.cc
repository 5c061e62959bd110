// Filters of sequences and mappings.
#include <algorithm>
#include <charconv>
#include <set>

#include "text/jinja/interp.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

// value.a.0.b: the parts of a dotted path, as subscripts.
Value by_path(Interp& in, Value v, const Value& path, const Value* otherwise = nullptr) {
  if (path.is<None>()) return v;
  if (path.str() == nullptr) {
    v = in.item(v, path);
    return v.undefined() && otherwise != nullptr ? *otherwise : v;
  }
  std::string_view rest = path.str()->text;
  while (true) {
    const std::size_t dot = rest.find('.');
    const std::string_view part = rest.substr(0, dot);
    std::int64_t place = 0;
    const auto number = std::from_chars(part.data(), part.data() + part.size(), place);
    const bool digits = !part.empty() && part[0] != '-' && number.ec == std::errc() &&
                        number.ptr == part.data() + part.size();
    v = in.item(v, digits ? Value(place) : make_str(in.run, std::string(part)));
    if (v.undefined() && otherwise != nullptr && !otherwise->is<None>()) v = *otherwise;
    if (dot == std::string_view::npos) return v;
    rest.remove_prefix(dot + 1);
  }
}

Value fold_case(Interp& in, const Value& v, bool case_sensitive) {
  if (case_sensitive || v.str() == nullptr) return v;
  in.run.read(v.str()->text.size() * 4);
  in.run.room(v.str()->text.size(), 3);
  return make_str(in.run, to_lower(v.str()->text));
}

// Stable, by compare() of keys; counts every comparison.
std::vector<Value> sorted(Interp& in, const std::vector<Value>& items,
                          const std::vector<Value>& keys, bool reverse) {
  std::vector<std::size_t> order(items.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (std::size_t i = 1; i < keys.size(); ++i) {
    if (compare(in.run, keys[0], keys[i]) == std::partial_ordering::unordered) {
      in.run.fail("cannot sort NaN");
    }
  }
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return reverse ? compare(in.run, keys[b], keys[a]) < 0 : compare(in.run, keys[a], keys[b]) < 0;
  });
  std::vector<Value> out;
  for (const std::size_t i : order) out.push_back(items[i]);
  return out;
}

Value sort(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "sort", args, {"reverse", "case_sensitive", "attribute"});
  const SeqPtr all = elements(in.run, v);
  std::vector<Value> keys;
  for (const Value& item : all->items) {
    std::vector<Value> parts;  // "a,b": by a, then by b
    const bool named = p.given(2) && p.at(2).str() != nullptr;
    if (!named) {
      const Value path = p.given(2) ? p.at(2) : Value(None{});
      parts.push_back(fold_case(in, by_path(in, item, path), p.flag(1, false)));
    }
    std::string_view paths = named ? p.text(2, "") : "";
    for (bool more = named; more;) {
      const std::size_t comma = paths.find(',');
      const Value path = make_str(in.run, std::string(paths.substr(0, comma)));
      parts.push_back(fold_case(in, by_path(in, item, path), p.flag(1, false)));
      more = comma != std::string_view::npos;
      if (more) paths.remove_prefix(comma + 1);
    }
    keys.push_back(make_list(in.run, std::move(parts)));
  }
  return make_list(in.run, sorted(in, all->items, keys, p.flag(0, false)));
}

Value dictsort(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "dictsort", args, {"case_sensitive", "by", "reverse"});
  const std::string_view by = p.text(1, "key");
  if (v.dict() == nullptr) in.run.fail("'dictsort' needs a dict, not {}", type_name(v));
  if (by != "key" && by != "value") in.run.fail("'dictsort' sorts by key or value");
  std::vector<Value> items, keys;
  for (const auto& [key, value] : v.dict()->items) {
    items.push_back(make_seq(in.run, Seq::Type::Tuple, {key, value}));
    keys.push_back(fold_case(in, by == "key" ? key : value, p.flag(0, false)));
  }
  return make_list(in.run, sorted(in, items, keys, p.flag(2, false)));
}

Value unique(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "unique", args, {"case_sensitive", "attribute"});
  std::set<std::string> seen;
  std::vector<Value> out;
  std::size_t bytes = 0;
  const SeqPtr all = elements(in.run, v);
  for (const Value& item : all->items) {
    const Value key = by_path(in, item, p.given(1) ? p.at(1) : Value(None{}));
    const auto [place, added] = seen.insert(hash_key(in.run, fold_case(in, key, p.flag(0, false))));
    if (!added) continue;
    in.run.room(bytes += place->size() + 64);
    out.push_back(item);
  }
  return make_generator(in.run, std::move(out));
}

template <bool largest>
Value extreme(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, largest ? "max" : "min", args, {"case_sensitive", "attribute"});
  const SeqPtr all = elements(in.run, v);
  if (all->items.empty()) return make_undefined(in.run, "the sequence was empty");
  Value best, best_key;
  for (const Value& item : all->items) {
    const Value key =
        fold_case(in, by_path(in, item, p.given(1) ? p.at(1) : Value(None{})), p.flag(0, false));
    if (&item == &all->items.front() ||
        (largest ? compare(in.run, key, best_key) > 0 : compare(in.run, key, best_key) < 0)) {
      best = item;
      best_key = key;
    }
  }
  return best;
}

Value sum(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "sum", args, {"attribute", "start"});
  Value total = p.get(1) != nullptr ? p.at(1) : Value(0);
  if (total.str() != nullptr) in.run.fail("'sum' of strings; use join");
  const SeqPtr all = elements(in.run, v);
  for (const Value& item : all->items) {
    total = binary(in.run, Expr::Op::Add, total,
                   by_path(in, item, p.given(0) ? p.at(0) : Value(None{})));
  }
  return total;
}

Value count(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "length", args, {});
  return length(in.run, v);
}

Value list(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "list", args, {});
  const SeqPtr all = elements(in.run, v);
  return all->type == Seq::Type::List ? Value(all) : make_list(in.run, all->items);
}

Value first(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "first", args, {});
  if (const auto* g = v.get<GeneratorPtr>()) {  // takes just one
    if ((*g)->next < (*g)->all->items.size()) return (*g)->all->items[(*g)->next++];
  }
  if (const Str* s = v.str(); s != nullptr && !s->text.empty()) {
    return make_str(in.run, s->text.substr(0, char_at(s->text, 0).bytes));
  }
  const SeqPtr all = elements(in.run, v);
  return all->items.empty() ? make_undefined(in.run, "the sequence was empty") : all->items[0];
}

Value last(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "last", args, {});
  if (v.is<GeneratorPtr>()) in.run.fail("'last' needs a list; use |list before it");
  if (v.str() != nullptr && !v.str()->text.empty()) return in.item(v, -1);
  const SeqPtr all = elements(in.run, v);
  return all->items.empty() ? make_undefined(in.run, "the sequence was empty") : all->items.back();
}

Value reverse(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "reverse", args, {});
  if (v.str() != nullptr) return slice(in.run, v, None{}, None{}, -1);
  const SeqPtr all = elements(in.run, v);
  return make_generator(in.run, {all->items.rbegin(), all->items.rend()});
}

Value items(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "items", args, {});
  if (!v.undefined() && v.dict() == nullptr) {
    in.run.fail("'items' needs a dict, not {}", type_name(v));
  }
  std::vector<Value> out;
  if (v.dict() != nullptr) {
    for (const auto& [key, value] : v.dict()->items) {
      out.push_back(make_seq(in.run, Seq::Type::Tuple, {key, value}));
    }
  }
  return make_generator(in.run, std::move(out));
}

Value join(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "join", args, {"d", "attribute"});
  const std::string separator = p.get(0) != nullptr ? to_text(in.run, p.at(0)) : "";
  std::string out;
  bool one = true;
  const SeqPtr all = elements(in.run, v);
  for (const Value& item : all->items) {
    in.run.step();
    if (!std::exchange(one, false)) in.run.append(out, separator);
    in.run.append(out, to_text(in.run, by_path(in, item, p.given(1) ? p.at(1) : Value(None{}))));
  }
  return make_str(in.run, std::move(out));
}

Value otherwise(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "default", args, {"default_value", "boolean"});
  if (!v.undefined() && (!p.flag(1, false) || truthy(v))) return v;
  return p.get(0) != nullptr ? p.at(0) : make_str(in.run, "");
}

Value attr(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "attr", args, {"name"}, 1);
  if (v.dict() != nullptr && !find_method(v, p.text(0, "")).exists) {
    return make_undefined(in.run, "a dict has no such attribute");  // unlike `.`, keys do not count
  }
  return in.attribute(v, p.text(0, ""));
}

Value map(Interp& in, const Value& v, const Args& args) {
  std::vector<Value> out;
  if (!truthy(v)) return make_generator(in.run, {});  // even None, as Jinja has it
  const bool by_attribute = args.positional.empty();
  Args rest = args;
  std::string name;
  if (!by_attribute) {
    if (args.positional[0].str() == nullptr) in.run.fail("'map' needs the name of a filter");
    name = args.positional[0].str()->text;
    rest.positional.erase(rest.positional.begin());
  }
  const Args none;
  const Params p(in.run, "map", by_attribute ? args : none, {"attribute", "default"});
  if (by_attribute && p.get(0) == nullptr) in.run.fail("'map' needs a filter or an attribute");
  const SeqPtr all = elements(in.run, v);
  for (const Value& item : all->items) {
    out.push_back(by_attribute ? by_path(in, item, p.at(0), p.get(1))
                               : in.filter(name, item, rest));
    require_data(in.run, out.back());
  }
  return make_generator(in.run, std::move(out));
}

// select, reject (tests of the element) and selectattr, rejectattr (of an attribute).
template <bool wanted, bool of_attribute>
Value select(Interp& in, const Value& v, const Args& args) {
  if (!truthy(v)) return make_generator(in.run, {});
  const std::size_t skip = of_attribute ? 1 : 0;
  if (args.positional.size() < skip) in.run.fail("'selectattr' needs the name of an attribute");
  Args rest{{}, args.named};
  if (args.positional.size() > skip) {
    if (args.positional[skip].str() == nullptr) in.run.fail("'select' needs the name of a test");
    rest.positional.assign(args.positional.begin() + static_cast<std::ptrdiff_t>(skip) + 1,
                           args.positional.end());
  }
  std::vector<Value> out;
  const SeqPtr all = elements(in.run, v);
  for (const Value& item : all->items) {
    const Value tested = of_attribute ? by_path(in, item, args.positional[0]) : item;
    const bool holds = args.positional.size() > skip
                           ? in.test(args.positional[skip].str()->text, tested, rest)
                           : truthy(tested);
    if (holds == wanted) out.push_back(item);
  }
  return make_generator(in.run, std::move(out));
}

Value batch(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "batch", args, {"linecount", "fill_with"}, 1);
  const std::int64_t n = p.integer(0, 1);
  if (n < 1) in.run.fail("'batch' needs a positive count");
  const auto size = static_cast<std::size_t>(n);
  const SeqPtr all = elements(in.run, v);
  std::vector<Value> out;
  for (std::size_t i = 0; i < all->items.size(); i += std::min(size, all->items.size() - i)) {
    const std::size_t end = i + std::min(size, all->items.size() - i);
    std::vector<Value> row(all->items.begin() + static_cast<std::ptrdiff_t>(i),
                           all->items.begin() + static_cast<std::ptrdiff_t>(end));
    if (p.given(1)) {
      in.run.room(size, sizeof(Value));
      row.resize(size, p.at(1));
    }
    out.push_back(make_list(in.run, std::move(row)));
  }
  return make_generator(in.run, std::move(out));
}

}  // namespace

Builtin find_filter(std::string_view name) {
  static constexpr BuiltinEntry filters[] = {
      {"attr", attr},
      {"batch", batch},
      {"count", count},
      {"d", otherwise},
      {"default", otherwise},
      {"dictsort", dictsort},
      {"first", first},
      {"items", items},
      {"join", join},
      {"last", last},
      {"length", count},
      {"list", list},
      {"map", map},
      {"max", extreme<true>},
      {"min", extreme<false>},
      {"reject", select<false, false>},
      {"rejectattr", select<false, true>},
      {"reverse", reverse},
      {"select", select<true, false>},
      {"selectattr", select<true, true>},
      {"sort", sort},
      {"sum", sum},
      {"unique", unique},
  };
  for (const auto& f : filters) {
    if (f.name == name) return f.function;
  }
  return find_text_filter(name);
}

}  // namespace nibble::jinja
