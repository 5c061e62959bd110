#include "text/jinja/print.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

// Escapes make text longer: it is counted before it gets large.
void flush_long(Run& run, std::string& out, std::string& text) {
  if (text.size() < 4096) return;
  run.append(out, text);
  text.clear();
}

void append_str_repr(Run& run, std::string& out, std::string_view s) {
  const char quote = s.find('\'') != s.npos && s.find('"') == s.npos ? '"' : '\'';
  run.read(s.size());
  std::string text(1, quote);
  for (std::size_t i = 0; i < s.size();) {
    flush_long(run, out, text);
    const Char c = char_at(s, i);
    if (c.code == quote || c.code == '\\')
      (text += '\\') += s[i];
    else if (c.code == '\n')
      text += "\\n";
    else if (c.code == '\r')
      text += "\\r";
    else if (c.code == '\t')
      text += "\\t";
    else if (c.code >= 0 && is_printable(c.code))
      text += s.substr(i, c.bytes);
    else if (c.code < 0)
      text += fmt::format("\\x{:02x}", static_cast<unsigned char>(s[i]));
    else if (c.code < 0x100)
      text += fmt::format("\\x{:02x}", c.code);
    else if (c.code < 0x10000)
      text += fmt::format("\\u{:04x}", c.code);
    else
      text += fmt::format("\\U{:08x}", c.code);
    i += c.bytes;
  }
  text += quote;
  run.append(out, text);
}

void append_json_string(Run& run, std::string& out, std::string_view s, bool ascii) {
  run.read(s.size());
  std::string text = "\"";
  for (std::size_t i = 0; i < s.size();) {
    flush_long(run, out, text);
    static constexpr std::string_view from = "\"\\\n\r\t\f\b", to = "\"\\nrtfb";
    const Char c = char_at(s, i);
    if (const auto known = from.find(s[i]); known != from.npos) {
      (text += '\\') += to[known];
    } else if (c.code >= 0 && (c.code < 0x20 || (ascii && c.code > 0x7E && c.code < 0x10000))) {
      text += fmt::format("\\u{:04x}", c.code);
    } else if (ascii && c.code >= 0x10000) {
      text += fmt::format("\\u{:04x}\\u{:04x}", 0xD7C0 + (c.code >> 10), 0xDC00 + (c.code & 0x3FF));
    } else {
      text += s.substr(i, c.bytes);
    }
    i += c.bytes;
  }
  text += '"';
  run.append(out, text);
}

std::string json_key(Run& run, const Value& key) {
  if (key.str() != nullptr) return key.str()->text;
  if (key.seq() != nullptr) run.fail("a tuple cannot be a key in JSON");
  std::string text;
  append_json(run, text, key, {});
  return text;
}

// `open` elements `close`, each element written by each(i).
template <class Each>
void append_json_items(Run& run, std::string& out, std::string_view brackets, std::size_t count,
                       const JsonStyle& style, int level, Each each) {
  const auto new_line = [&](int depth) {
    if (!style.lines) return;
    run.append(out, "\n");
    for (int i = 0; i < depth; ++i) run.append(out, style.indent);
  };
  run.append(out, brackets.substr(0, 1));
  for (std::size_t i = 0; i < count; ++i) {
    if (i > 0) run.append(out, style.item_separator);
    new_line(level + 1);
    each(i);
  }
  if (count > 0) new_line(level);
  run.append(out, brackets.substr(1));
}

}  // namespace

std::string float_text(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[40];  // shortest digits that read back as d: [-]d[.ddd]e[+-]dd
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<std::size_t>(end.ptr - buffer));
  const std::size_t e = text.find('e');
  const int exponent = std::atoi(std::string(text.substr(e + 1)).c_str());
  if (exponent < -4 || exponent >= 16) return std::string(text);
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  std::string out = std::signbit(d) ? "-" : "";
  if (exponent < 0)
    return out + "0." + std::string(static_cast<std::size_t>(-exponent) - 1, '0') + digits;
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= whole) return out + digits + std::string(whole - digits.size(), '0') + ".0";
  return out + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string escape_html(Run& run, std::string_view s) {
  std::string out;
  for (const char c : s) {
    switch (c) {
      case '&':
        run.append(out, "&amp;");
        break;
      case '<':
        run.append(out, "&lt;");
        break;
      case '>':
        run.append(out, "&gt;");
        break;
      case '"':
        run.append(out, "&#34;");
        break;
      case '\'':
        run.append(out, "&#39;");
        break;
      default:
        out += c;
    }
  }
  run.read(s.size());
  return out;
}

std::string to_text(Run& run, const Value& v) {
  if (const Str* s = v.str()) {
    run.work(s->text.size());
    return s->text;
  }
  if (v.undefined()) return {};
  std::string out;
  append_repr(run, out, v);
  return out;
}

void append_repr(Run& run, std::string& out, const Value& v) {
  run.step();
  if (v.is<None>()) return run.append(out, "None");
  if (const auto* b = v.get<bool>()) return run.append(out, *b ? "True" : "False");
  if (v.integer()) return run.append(out, fmt::format("{}", v.as_int()));
  if (const auto* d = v.get<double>()) return run.append(out, float_text(*d));
  if (v.undefined()) return run.append(out, "Undefined");
  if (const Str* s = v.str()) {
    if (!s->markup) return append_str_repr(run, out, s->text);
    run.append(out, "Markup(");
    append_str_repr(run, out, s->text);
    return run.append(out, ")");
  }
  if (const Dict* d = v.dict()) {
    run.append(out, "{");
    for (std::size_t i = 0; i < d->items.size(); ++i) {
      if (i > 0) run.append(out, ", ");
      append_repr(run, out, d->items[i].first);
      run.append(out, ": ");
      append_repr(run, out, d->items[i].second);
    }
    return run.append(out, "}");
  }
  const Seq* s = v.seq();
  if (s == nullptr || s->type == Seq::Type::Range) {
    run.fail("printing a value of type '{}' is not supported", type_name(v));
  }
  const bool tuple = s->type == Seq::Type::Tuple;
  const bool view = s->type > Seq::Type::Range;  // dict_items([...])
  if (view) run.append(out, fmt::format("{}(", type_name(v)));
  run.append(out, tuple ? "(" : "[");
  for (std::size_t i = 0; i < s->items.size(); ++i) {
    if (i > 0) run.append(out, ", ");
    append_repr(run, out, s->items[i]);
  }
  if (tuple && s->items.size() == 1) run.append(out, ",");
  run.append(out, tuple ? ")" : "]");
  if (view) run.append(out, ")");
}

void append_json(Run& run, std::string& out, const Value& v, const JsonStyle& style, int level) {
  run.step();
  if (v.is<None>()) return run.append(out, "null");
  if (const auto* b = v.get<bool>()) return run.append(out, *b ? "true" : "false");
  if (v.integer()) return run.append(out, fmt::format("{}", v.as_int()));
  if (const auto* d = v.get<double>()) {
    if (std::isfinite(*d)) return run.append(out, float_text(*d));
    return run.append(out, std::isnan(*d) ? "NaN" : *d < 0 ? "-Infinity" : "Infinity");
  }
  if (const Str* s = v.str()) return append_json_string(run, out, s->text, style.ascii);
  if (const Dict* d = v.dict()) {
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : d->items) items.push_back(&item);
    if (style.sort_keys) {
      std::stable_sort(items.begin(), items.end(), [&](const auto* a, const auto* b) {
        return compare(run, a->first, b->first) < 0;
      });
    }
    return append_json_items(run, out, "{}", items.size(), style, level, [&](std::size_t i) {
      append_json_string(run, out, json_key(run, items[i]->first), style.ascii);
      run.append(out, style.key_separator);
      append_json(run, out, items[i]->second, style, level + 1);
    });
  }
  const Seq* s = v.seq();
  if (s == nullptr || s->type > Seq::Type::Tuple) {
    run.fail("a value of type '{}' cannot be written as JSON", type_name(v));
  }
  append_json_items(run, out, "[]", s->items.size(), style, level,
                    [&](std::size_t i) { append_json(run, out, s->items[i], style, level + 1); });
}

std::string percent_format(Run& run, std::string_view f, const Value& args) {
  const Seq* many =
      args.seq() != nullptr && args.seq()->type == Seq::Type::Tuple ? args.seq() : nullptr;
  run.read(f.size());
  std::size_t used = 0;
  bool by_name = false;
  const auto next = [&]() -> const Value& {
    if (many == nullptr && used == 0) return ++used, args;
    if (many == nullptr || used >= many->items.size()) run.fail("too few values for the format");
    return many->items[used++];
  };
  std::string out;
  for (std::size_t i = 0; i < f.size(); ++i) {
    if (f[i] != '%') {
      out += f[i];
      continue;
    }
    const std::size_t begin = i++;
    const Value* named = nullptr;
    if (i < f.size() && f[i] == '(' && args.dict() != nullptr) {
      const std::size_t close = f.find(')', i);
      if (close == f.npos) run.fail("a format without its ')'");
      named = args.dict()->find(f.substr(i + 1, close - i - 1));
      if (named == nullptr) run.fail("no value for the format {}", f.substr(begin, close - begin));
      by_name = true;
      i = close + 1;
    }
    std::string spec;  // flags, width and precision: a subset that fmt reads alike
    bool left = false;
    for (; i < f.size() && std::string_view("-+ 0").find(f[i]) != f.npos; ++i) {
      if (f[i] == '-')
        left = true;
      else
        spec += f[i];
    }
    std::size_t width = 0;
    int precision = -1;
    for (; i < f.size() && f[i] >= '0' && f[i] <= '9' && width < 10000; ++i) {
      width = width * 10 + static_cast<std::size_t>(f[i] - '0');
    }
    if (i < f.size() && f[i] == '.') {
      precision = 0;
      for (++i; i < f.size() && f[i] >= '0' && f[i] <= '9' && precision < 100; ++i) {
        precision = precision * 10 + (f[i] - '0');
      }
    }
    const char kind = i < f.size() ? f[i] : '\0';
    if (kind == '%' && i == begin + 1) {
      out += '%';
      continue;
    }
    if (width >= 10000 || precision >= 100 || (spec.size() > 1) ||
        std::string_view("srdiufx").find(kind) == f.npos || kind == '\0') {
      run.fail("the format '{}' is not supported", f.substr(begin, i - begin + 1));
    }
    const Value& v = named != nullptr ? *named : next();
    std::string text;
    if (kind == 's') {
      text = to_text(run, v);
    } else if (kind == 'r') {
      append_repr(run, text, v);
    } else {
      if (!v.number()) run.fail("the format '%{}' needs a number, not {}", kind, type_name(v));
      if (kind == 'f')
        text = fmt::format("{:.{}f}", v.as_double(), precision < 0 ? 6 : precision);
      else if (!v.integer())
        run.fail("the format '%{}' of a float is not supported", kind);
      else if (kind == 'x')
        text = fmt::format("{:x}", v.as_int());
      else
        text = fmt::format("{}", v.as_int());
      if ((spec == "+" || spec == " ") && text[0] != '-') text.insert(0, spec);
    }
    if ((kind == 's' || kind == 'r') && precision >= 0) {
      text.resize(byte_of_char(text, static_cast<std::size_t>(precision)));
    }
    const std::size_t length = count_chars(text);
    const bool zeros = spec == "0" && kind != 's' && kind != 'r' && !left;
    if (length < width) {
      const std::size_t sign = zeros && text[0] == '-' ? 1 : 0;
      const std::string pad(width - length, zeros ? '0' : ' ');
      text.insert(left ? text.size() : sign, pad);
    }
    run.append(out, text);
  }
  const bool mapping = args.dict() != nullptr || args.list() || by_name;  // as Python takes a list
  if (!mapping && used < (many != nullptr ? many->items.size() : 1)) {
    run.fail("too many values for the format");
  }
  return out;
}

}  // namespace nibble::jinja
