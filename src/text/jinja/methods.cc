// Methods of strings.
#include <algorithm>

#include "text/jinja/interp.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace nibble::jinja {

namespace {
constexpr std::size_t npos = std::string_view::npos;
}

std::string replace_text(Run& run, std::string_view s, std::string_view from, std::string_view to,
                         std::int64_t count) {
  std::string out;
  std::size_t begin = 0;
  for (std::size_t at = 0; count != 0; --count) {
    if (from.empty()) {  // before every character, and at the end
      run.append(out, to);
      if (begin == s.size()) return out;
      run.append(out, s.substr(begin, char_at(s, begin).bytes));
      begin += char_at(s, begin).bytes;
      run.step();
      continue;
    }
    at = find_text(s, from, begin);
    if (at == npos) break;
    run.step();
    run.append(out, s.substr(begin, at - begin));
    run.append(out, to);
    begin = at + from.size();
  }
  run.append(out, s.substr(begin));
  return out;
}

std::vector<std::string_view> split_lines(Run& run, std::string_view s, bool keep_ends) {
  std::vector<std::string_view> out;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < s.size();) {
    const Char c = char_at(s, i);
    const bool ends = (c.code >= 10 && c.code <= 13) || (c.code >= 0x1C && c.code <= 0x1E) ||
                      c.code == 0x85 || c.code == 0x2028 || c.code == 0x2029;
    const std::size_t at = i;
    i += c.bytes;
    if (!ends) continue;
    if (c.code == '\r' && i < s.size() && s[i] == '\n') ++i;
    run.room(out.size(), sizeof(Value));
    out.push_back(s.substr(begin, (keep_ends ? i : at) - begin));
    begin = i;
  }
  if (begin < s.size()) out.push_back(s.substr(begin));
  return out;
}

bool is_all_case(std::string_view s, bool upper) {
  bool any = false;
  for (std::size_t i = 0; i < s.size(); i += char_at(s, i).bytes) {
    const std::int32_t c = char_at(s, i).code;
    if (upper ? is_lower(c) || is_title(c) : is_upper(c) || is_title(c)) return false;
    any |= upper ? is_upper(c) : is_lower(c);
  }
  return any;
}

namespace {

// A result made from `self`: it keeps the markup.
Value like(Interp& in, const Value& self, std::string text) {
  return make_str(in.run, std::move(text), self.str()->markup);
}
Value like(Interp& in, const Value& self, std::string_view text) {
  return like(in, self, std::string(text));
}

// An argument that becomes part of the result: escaped if `self` is markup and it is not.
std::string part(Interp& in, const Value& self, const Value& v) {
  if (v.str() == nullptr) in.run.fail("expected a string, got {}", type_name(v));
  const bool escape = self.str()->markup && !v.str()->markup;
  return escape ? escape_html(in.run, v.str()->text) : v.str()->text;
}

template <std::string (*f)(std::string_view)>
Value map_text(Interp& in, const Value& self, const Args& args) {
  const Params none(in.run, "this method", args, {});
  const std::string& s = self.str()->text;
  in.run.read(s.size() * 4);
  in.run.room(s.size(), 3);  // longest a change of case makes it
  return like(in, self, f(s));
}

template <bool left, bool right>
Value strip_ends(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "strip", args, {"chars"});
  const std::string_view s = self.str()->text;
  if (!p.given(0)) return like(in, self, strip(s, left, right));
  const std::string chars = part(in, self, p.at(0));
  in.run.room(chars.size());
  // Each character looks through all of `chars`.
  in.run.work(s.size() * chars.size());
  return like(in, self, strip(s, left, right, chars));
}

// Pieces between separators, at most `limit` cuts (negative: all), from the left or the right.
std::vector<std::string_view> pieces(Interp& in, std::string_view s, std::string_view separator,
                                     std::int64_t limit, bool from_right) {
  // From the right is from the left of the reversed text: find_text is linear, rfind is not.
  in.run.room(s.size(), from_right ? 2 : 1);
  const std::string mirrored = from_right ? std::string(s.rbegin(), s.rend()) : "";
  const std::string needle =
      from_right ? std::string(separator.rbegin(), separator.rend()) : std::string(separator);
  const std::string_view text = from_right ? std::string_view(mirrored) : s;
  std::vector<std::string_view> out;
  std::size_t begin = 0;
  const auto add = [&](std::size_t end) {
    in.run.room(out.size(), sizeof(Value));
    out.push_back(s.substr(from_right ? s.size() - end : begin, end - begin));
  };
  for (std::size_t at = 0; limit < 0 || static_cast<std::int64_t>(out.size()) < limit;) {
    at = find_text(text, needle, begin);
    if (at == npos) break;
    add(at);
    begin = at + needle.size();
  }
  add(s.size());
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

// Where the word ends that s begins with; from the right, where the one begins that s ends with.
std::size_t word_edge(std::string_view s, bool from_right) {
  std::size_t i = from_right ? s.size() : 0;
  if (!from_right) {
    while (i < s.size() && !is_space(char_at(s, i).code)) i += char_at(s, i).bytes;
    return i;
  }
  for (; i > 0; --i) {  // the inside of a character is no space
    const Char c = char_at(s, i - 1);
    if (is_space(c.code)) return i - 1 + c.bytes;
  }
  return 0;
}

std::vector<std::string_view> words(Interp& in, std::string_view s, std::int64_t limit,
                                    bool from_right) {
  std::vector<std::string_view> out;
  s = strip(s, !from_right, from_right);  // with a limit, the far end keeps its white space
  while (!s.empty() && (limit < 0 || static_cast<std::int64_t>(out.size()) < limit)) {
    in.run.room(out.size(), sizeof(Value));
    const std::size_t edge = word_edge(s, from_right);
    out.push_back(from_right ? s.substr(edge) : s.substr(0, edge));
    s = from_right ? strip(s.substr(0, edge), false, true) : strip(s.substr(edge), true, false);
  }
  if (!s.empty()) out.push_back(s);
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

Value list_of(Interp& in, const Value& self, const std::vector<std::string_view>& parts) {
  std::vector<Value> items;
  for (const auto p : parts) items.push_back(like(in, self, p));
  return make_list(in.run, std::move(items));
}

template <bool from_right>
Value split(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "split", args, {"sep", "maxsplit"});
  const std::string_view s = self.str()->text;
  const std::int64_t limit = p.integer(1, -1);
  if (!p.given(0)) return list_of(in, self, words(in, s, limit, from_right));
  if (p.text(0, "").empty()) in.run.fail("split() with an empty separator");
  return list_of(in, self, pieces(in, s, p.text(0, ""), limit, from_right));
}

Value splitlines(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "splitlines", args, {"keepends"});
  return list_of(in, self, split_lines(in.run, self.str()->text, p.flag(0, false)));
}

template <bool from_right>
Value partition(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "partition", args, {"sep"}, 1);
  const std::string_view separator = p.text(0, "");
  if (separator.empty()) in.run.fail("partition() with an empty separator");
  auto parts = pieces(in, self.str()->text, separator, 1, from_right);
  if (parts.size() == 2)
    parts.insert(parts.begin() + 1, separator);
  else
    parts.insert(from_right ? parts.begin() : parts.end(), 2, std::string_view());
  std::vector<Value> items;
  for (const auto s : parts) items.push_back(like(in, self, s));
  return make_seq(in.run, Seq::Type::Tuple, std::move(items));
}

template <bool at_end>
Value has_affix(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, at_end ? "endswith" : "startswith", args, {"text"}, 1);
  const std::string_view s = self.str()->text;
  const auto holds = [&](const Value& v) {
    if (v.str() == nullptr) in.run.fail("expected a string, got {}", type_name(v));
    in.run.work(v.str()->text.size());
    return at_end ? s.ends_with(v.str()->text) : s.starts_with(v.str()->text);
  };
  const Seq* any = p.at(0).seq();
  if (any == nullptr || any->type != Seq::Type::Tuple) return holds(p.at(0));
  return std::any_of(any->items.begin(), any->items.end(), holds);
}

template <bool suffix>
Value remove_affix(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "removeprefix", args, {"affix"}, 1);
  const std::string_view s = self.str()->text, affix = p.text(0, "");
  if (suffix && s.ends_with(affix)) return like(in, self, s.substr(0, s.size() - affix.size()));
  if (!suffix && s.starts_with(affix)) return like(in, self, s.substr(affix.size()));
  return self;
}

Value replace(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "replace", args, {"old", "new", "count"}, 2);
  return like(in, self,
              replace_text(in.run, self.str()->text, part(in, self, p.at(0)),
                           part(in, self, p.at(1)), p.integer(2, -1)));
}

template <bool from_right, bool must>
Value find_place(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "find", args, {"text"}, 1);
  const std::string_view s = self.str()->text, needle = p.text(0, "");
  const auto parts =
      pieces(in, s, needle.empty() ? " " : needle, needle.empty() ? 0 : 1, from_right);
  if (needle.empty()) return from_right ? count_chars(s) : 0;
  if (parts.size() == 2) return count_chars(parts[0]);
  if (must) in.run.fail("index(): the text is not there");
  return -1;
}

Value count(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "count", args, {"text"}, 1);
  const std::string_view s = self.str()->text, needle = p.text(0, "");
  if (needle.empty()) return count_chars(s) + 1;
  std::int64_t n = 0;
  for (std::size_t at = 0; (at = find_text(s, needle, at)) != npos; at += needle.size()) ++n;
  return n;
}

Value join(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "join", args, {"items"}, 1);
  std::string out;
  bool first = true;
  const SeqPtr all = elements(in.run, p.at(0));
  for (const Value& v : all->items) {
    if (!std::exchange(first, false)) in.run.append(out, self.str()->text);
    in.run.append(out, part(in, self, v));
  }
  return like(in, self, std::move(out));
}

// Padding to a width: `left` and `right` say where it goes.
template <bool left, bool right>
Value pad(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "this method", args, {"width", "fill"}, 1);
  const std::string fill = p.given(1) ? std::string(p.text(1, " ")) : " ";
  if (count_chars(fill) != 1) in.run.fail("the fill must be one character");
  const std::int64_t n = length(in.run, self), width = std::max(p.integer(0, 0), n);
  const auto missing = static_cast<std::size_t>(width - n);
  in.run.room(missing, fill.size());
  // str.center puts an odd one on the left when the width is odd too
  const std::size_t half = missing / 2 + (missing & static_cast<std::size_t>(width) & 1);
  const std::size_t before = left && right ? half : left ? missing : 0;
  std::string out;
  for (std::size_t i = 0; i < before; ++i) out += fill;
  out += self.str()->text;
  for (std::size_t i = before; i < missing; ++i) out += fill;
  return like(in, self, std::move(out));
}

Value zfill(Interp& in, const Value& self, const Args& args) {
  const Params p(in.run, "zfill", args, {"width"}, 1);
  const std::int64_t n = length(in.run, self), width = p.integer(0, 0);
  if (width <= n) return self;
  const auto missing = static_cast<std::size_t>(width - n);
  in.run.room(missing);
  std::string out = self.str()->text;
  const bool sign = out.starts_with('-') || out.starts_with('+');
  out.insert(sign ? 1 : 0, missing, '0');
  return like(in, self, std::move(out));
}

template <bool (*of)(std::int32_t)>
Value all_chars(Interp& in, const Value& self, const Args& args) {
  const Params none(in.run, "this method", args, {});
  const std::string_view s = self.str()->text;
  for (std::size_t i = 0; i < s.size(); i += char_at(s, i).bytes) {
    if (!of(char_at(s, i).code)) return false;
  }
  return !s.empty();
}

template <bool upper>
Value has_case(Interp& in, const Value& self, const Args& args) {
  const Params none(in.run, "this method", args, {});
  return is_all_case(self.str()->text, upper);
}

Value format(Interp& in, const Value& self, const Args& args) {
  if (self.str()->markup) in.run.fail("format() of a |safe string is not supported");
  const std::string_view s = self.str()->text;
  std::string out;
  std::size_t next = 0;
  for (std::size_t i = 0; i < s.size(); ++i) {
    if ((s[i] == '{' || s[i] == '}') && i + 1 < s.size() && s[i + 1] == s[i])
      ++i;
    else if (s[i] == '}')
      in.run.fail("format(): a single '}}'");
    else if (s[i] == '{') {
      const std::size_t close = s.find('}', i);
      if (close == npos) in.run.fail("format(): a single '{{'");
      const std::string_view field = s.substr(i + 1, close - i - 1);
      const bool digits =
          !field.empty() && field.size() < 6 && field.find_first_not_of("0123456789") == npos;
      const Value* v = nullptr;
      if (field.empty() || digits) {
        const std::size_t at = digits ? std::stoul(std::string(field)) : next++;
        if (at < args.positional.size()) v = &args.positional[at];
      } else if (field.find_first_of("!:.[") != npos) {
        in.run.fail("format(): the field '{}' is not supported", field.substr(0, 40));
      }
      for (const auto& [name, value] : args.named) {
        if (v == nullptr && name == field) v = &value;
      }
      if (v == nullptr) in.run.fail("format(): no value for '{}'", field.substr(0, 40));
      in.run.step(1 + args.named.size());
      in.run.append(out, to_text(in.run, *v));
      i = close;
      continue;
    }
    out += s[i];
  }
  return make_str(in.run, std::move(out));
}

}  // namespace

Builtin find_str_method(std::string_view name) {
  static constexpr BuiltinEntry methods[] = {
      {"capitalize", map_text<capitalize>},
      {"center", pad<true, true>},
      {"count", count},
      {"endswith", has_affix<true>},
      {"find", find_place<false, false>},
      {"format", format},
      {"index", find_place<false, true>},
      {"isalnum", all_chars<is_alnum>},
      {"isalpha", all_chars<is_alpha>},
      {"isdecimal", all_chars<is_decimal>},
      {"isdigit", all_chars<is_digit>},
      {"islower", has_case<false>},
      {"isspace", all_chars<is_space>},
      {"isupper", has_case<true>},
      {"join", join},
      {"ljust", pad<false, true>},
      {"lower", map_text<to_lower>},
      {"lstrip", strip_ends<true, false>},
      {"partition", partition<false>},
      {"removeprefix", remove_affix<false>},
      {"removesuffix", remove_affix<true>},
      {"replace", replace},
      {"rfind", find_place<true, false>},
      {"rindex", find_place<true, true>},
      {"rjust", pad<true, false>},
      {"rpartition", partition<true>},
      {"rsplit", split<true>},
      {"rstrip", strip_ends<false, true>},
      {"split", split<false>},
      {"splitlines", splitlines},
      {"startswith", has_affix<false>},
      {"strip", strip_ends<true, true>},
      {"title", map_text<title_case>},
      {"upper", map_text<to_upper>},
      {"zfill", zfill},
  };
  for (const auto& m : methods) {
    if (m.name == name) return m.function;
  }
  return nullptr;
}

}  // namespace nibble::jinja
