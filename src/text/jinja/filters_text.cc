// Filters of one value: text and numbers.
#include <charconv>
#include <cmath>

#include "text/jinja/interp.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

// Filters that are methods of str, on anything that prints.
Value upper(Interp& in, const Value& v, const Args& args) {
  return find_str_method("upper")(in, as_str(in.run, v), args);
}
Value lower(Interp& in, const Value& v, const Args& args) {
  return find_str_method("lower")(in, as_str(in.run, v), args);
}
Value capital(Interp& in, const Value& v, const Args& args) {
  return find_str_method("capitalize")(in, as_str(in.run, v), args);
}
Value trim(Interp& in, const Value& v, const Args& args) {
  return find_str_method("strip")(in, as_str(in.run, v), args);
}

Value string(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "string", args, {});
  return as_str(in.run, v);
}

Value safe(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "safe", args, {});
  return make_str(in.run, to_text(in.run, v), true);
}

Value escape(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "escape", args, {});
  if (v.str() != nullptr && v.str()->markup) return v;
  return make_str(in.run, escape_html(in.run, to_text(in.run, v)), true);
}

Value replace(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "replace", args, {"old", "new", "count"}, 2);
  return make_str(in.run, replace_text(in.run, to_text(in.run, v), to_text(in.run, p.at(0)),
                                       to_text(in.run, p.at(1)), p.integer(2, -1)));
}

// Every word's first character upper, the rest lower; words end at -, white space and ( { [ <.
Value title(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "title", args, {});
  const StrPtr s = as_str(in.run, v);
  const std::string_view text = s->text;
  in.run.read(text.size() * 4);
  in.run.room(text.size(), 3);
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const auto splits = [&](std::size_t at) {
      return std::string_view("-({[<").find(text[at]) != std::string_view::npos ||
             is_space(char_at(text, at).code);
    };
    std::size_t end = i;
    const bool separator = splits(i);
    while (end < text.size() && splits(end) == separator) end += char_at(text, end).bytes;
    const std::string_view word = text.substr(i, end - i);
    const std::size_t first = char_at(word, 0).bytes;
    out += to_upper(word.substr(0, first)) + to_lower(word.substr(first));
    i = end;
  }
  return make_str(in.run, std::move(out), s->markup);
}

Value indent(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "indent", args, {"width", "first", "blank"});
  if (v.str() == nullptr) in.run.fail("'indent' needs a string, not {}", type_name(v));
  std::string indention;
  if (p.given(0) && p.at(0).str() != nullptr) {
    indention = p.at(0).str()->text;
  } else {
    const std::int64_t width = std::max<std::int64_t>(p.integer(0, 4), 0);
    in.run.room(static_cast<std::size_t>(width));
    indention.assign(static_cast<std::size_t>(width), ' ');
  }
  const std::string text = v.str()->text + "\n";
  std::string out;
  bool first = true;
  for (const std::string_view line : split_lines(in.run, text, false)) {
    if (!first) in.run.append(out, "\n");
    const bool blank = line.empty() && !first;
    if (first ? p.flag(1, false) : !blank || p.flag(2, false)) in.run.append(out, indention);
    in.run.append(out, line);
    first = false;
  }
  return make_str(in.run, std::move(out), v.str()->markup);
}

Value center(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "center", args, {"width"});
  const Args width{{p.get(0) != nullptr ? p.at(0) : Value(80)}, {}};
  return find_str_method("center")(in, as_str(in.run, v), width);
}

Value truncate(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "truncate", args, {"length", "killwords", "end", "leeway"});
  const std::string_view end = p.text(2, "...");
  const std::int64_t limit = std::max<std::int64_t>(p.integer(0, 255), 0);
  const std::int64_t keep = limit - static_cast<std::int64_t>(count_chars(end));
  const std::int64_t leeway = p.integer(3, 5);
  if (keep < 0 || leeway < 0) in.run.fail("'truncate' needs room for its end");
  if (length(in.run, v) - leeway <= limit) return v;
  if (v.str() == nullptr) in.run.fail("'truncate' needs a string, not {}", type_name(v));
  std::string out =
      v.str()->text.substr(0, byte_of_char(v.str()->text, static_cast<std::size_t>(keep)));
  if (const auto space = out.rfind(' '); !p.flag(1, false) && space != out.npos) out.resize(space);
  in.run.append(out, end);
  return make_str(in.run, std::move(out));
}

Value wordcount(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "wordcount", args, {});
  const std::string text = to_text(in.run, v);
  std::int64_t n = 0;
  bool inside = false;
  for (std::size_t i = 0; i < text.size(); i += char_at(text, i).bytes) {
    const bool was = std::exchange(inside, text[i] == '_' || is_alnum(char_at(text, i).code));
    n += inside && !was ? 1 : 0;
  }
  return n;
}

// Digits with single underscores between them, as Python reads numbers.
std::optional<std::string> number_text(std::string_view s) {
  s = strip(s, true, true);
  std::string out;
  for (std::size_t i = 0; i < s.size(); ++i) {
    const auto alnum = [&](std::size_t at) {
      return at < s.size() && s[at] >= '0' && s[at] <= '9';
    };
    if (s[i] != '_')
      out += s[i];
    else if (i == 0 || !alnum(i - 1) || !alnum(i + 1))
      return std::nullopt;
  }
  if (out.starts_with('+') && !out.starts_with("+-")) out.erase(0, 1);
  return out;
}

std::optional<double> parse_float(std::string_view s) {
  const auto text = number_text(s);
  if (!text.has_value() || text->find_first_of("xXpP(") != std::string::npos) return std::nullopt;
  double d = 0;
  const char* end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data(), end, d);
  if (error == std::errc::result_out_of_range && stop == end) {
    return text->find("e-") != std::string::npos ? 0.0 : HUGE_VAL;
  }
  return error == std::errc() && stop == end ? std::optional(d) : std::nullopt;
}

std::int64_t whole(Interp& in, double d) {
  if (std::fabs(d) >= 0x1p63) in.run.fail("the integer part of {} is beyond 64 bits", d);
  return static_cast<std::int64_t>(d);
}

Value to_int(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "int", args, {"default", "base"});
  const Value otherwise = p.get(0) != nullptr ? p.at(0) : Value(0);
  if (p.integer(1, 10) != 10) in.run.fail("'int' with another base than 10 is not supported");
  if (v.undefined()) in.run.fail("{}", v.get<Undefined>()->why->text);
  if (v.integer()) return v.as_int();
  if (v.str() == nullptr && !v.is<double>()) return otherwise;
  if (const auto* d = v.get<double>()) return std::isnan(*d) ? otherwise : whole(in, *d);
  const auto text = number_text(v.str()->text);
  if (text.has_value()) {
    std::int64_t i = 0;
    const char* end = text->data() + text->size();
    const auto [stop, error] = std::from_chars(text->data(), end, i);
    if (stop == end && error == std::errc::result_out_of_range) {
      in.run.fail("the number '{}' is beyond 64 bits", text->substr(0, 40));
    }
    if (stop == end && error == std::errc()) return i;
  }
  const auto d = parse_float(v.str()->text);
  return d.has_value() && std::isfinite(*d) ? Value(whole(in, *d)) : otherwise;
}

Value to_float(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "float", args, {"default"});
  if (v.undefined()) in.run.fail("{}", v.get<Undefined>()->why->text);
  if (v.number()) return v.as_double();
  if (v.str() != nullptr) {
    if (const auto d = parse_float(v.str()->text)) return *d;
  }
  return p.get(0) != nullptr ? p.at(0) : Value(0.0);
}

Value abs_of(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "abs", args, {});
  if (!v.number()) in.run.fail("'abs' needs a number, not {}", type_name(v));
  if (const auto* d = v.get<double>()) return std::fabs(*d);
  return v.as_int() < 0 ? negate(in.run, v) : Value(v.as_int());
}

Value round_to(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "round", args, {"precision", "method"});
  const std::int64_t places = p.integer(0, 0);
  const std::string_view method = p.text(1, "common");
  if (!v.number()) in.run.fail("'round' needs a number, not {}", type_name(v));
  if (places < 0 || places > 100) in.run.fail("'round' takes 0 to 100 places");
  if (method != "common" && method != "ceil" && method != "floor") {
    in.run.fail("'round' knows common, ceil and floor");
  }
  if (method == "common" && v.integer()) return v.as_int();
  const double d = v.as_double(), scale = std::pow(10.0, static_cast<double>(places));
  if (method != "common")
    return (method == "ceil" ? std::ceil(d * scale) : std::floor(d * scale)) / scale;
  if (!std::isfinite(d)) return d;
  const std::string text = fmt::format("{:.{}f}", d, places);  // exact, ties to even
  double r = 0;
  std::from_chars(text.data(), text.data() + text.size(), r);
  return r;
}

Value to_json(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = p.flag(0, false);
  style.sort_keys = p.flag(3, false);
  if (p.given(1)) {
    style.lines = true;
    style.item_separator = ",";
    if (p.at(1).str() != nullptr) {
      style.indent = p.at(1).str()->text;
    } else {
      const std::int64_t width = p.integer(1, 0);
      if (width > 1000) in.run.fail("'tojson' with an indent of {}", width);
      style.indent.assign(static_cast<std::size_t>(std::max<std::int64_t>(width, 0)), ' ');
    }
  }
  if (p.given(2)) {
    const SeqPtr two = elements(in.run, p.at(2));
    if (two->items.size() != 2 || two->items[0].str() == nullptr ||
        two->items[1].str() == nullptr) {
      in.run.fail("'tojson' needs two strings for separators");
    }
    style.item_separator = two->items[0].str()->text;
    style.key_separator = two->items[1].str()->text;
  }
  std::string out;
  append_json(in.run, out, v, style);
  return make_str(in.run, std::move(out));
}

Value format(Interp& in, const Value& v, const Args& args) {
  if (!args.positional.empty() && !args.named.empty()) {
    in.run.fail("'format' cannot take both positional and named arguments");
  }
  const StrPtr s = as_str(in.run, v);
  if (s->markup) in.run.fail("'format' of a |safe string is not supported");
  std::vector<std::pair<Value, Value>> named;
  for (const auto& [name, value] : args.named) named.emplace_back(make_str(in.run, name), value);
  const Value values = named.empty() ? make_seq(in.run, Seq::Type::Tuple, args.positional)
                                     : make_dict(in.run, std::move(named));
  return make_str(in.run, percent_format(in.run, s->text, values));
}

}  // namespace

Builtin find_text_filter(std::string_view name) {
  static constexpr BuiltinEntry filters[] = {
      {"abs", abs_of},    {"capitalize", capital}, {"center", center},   {"e", escape},
      {"escape", escape}, {"float", to_float},     {"format", format},   {"indent", indent},
      {"int", to_int},    {"lower", lower},        {"replace", replace}, {"round", round_to},
      {"safe", safe},     {"string", string},      {"title", title},     {"tojson", to_json},
      {"trim", trim},     {"truncate", truncate},  {"upper", upper},     {"wordcount", wordcount},
  };
  for (const auto& f : filters) {
    if (f.name == name) return f.function;
  }
  return nullptr;
}

}  // namespace nibble::jinja
