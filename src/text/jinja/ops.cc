// Arithmetic and slices.
#include <algorithm>
#include <cmath>

#include "text/jinja/interp.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

using Op = Expr::Op;

std::string_view symbol(Op op) {
  switch (op) {
    case Op::Add:
      return "+";
    case Op::Sub:
      return "-";
    case Op::Mul:
      return "*";
    case Op::Div:
      return "/";
    case Op::FloorDiv:
      return "//";
    case Op::Mod:
      return "%";
    default:
      return "**";
  }
}

[[noreturn]] void overflow(Run& run, Op op) {
  run.fail("the result of '{}' is beyond 64 bits", symbol(op));
}

std::int64_t int_power(Run& run, std::int64_t base, std::int64_t exponent) {
  std::int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) {
      overflow(run, Op::Pow);
    }
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) overflow(run, Op::Pow);
  }
  return result;
}

Value int_binary(Run& run, Op op, std::int64_t a, std::int64_t b) {
  std::int64_t r = 0;
  switch (op) {
    case Op::Add:
      if (__builtin_add_overflow(a, b, &r)) overflow(run, op);
      return r;
    case Op::Sub:
      if (__builtin_sub_overflow(a, b, &r)) overflow(run, op);
      return r;
    case Op::Mul:
      if (__builtin_mul_overflow(a, b, &r)) overflow(run, op);
      return r;
    case Op::Pow:
      if (b >= 0) return int_power(run, a, b);
      if (a == 0) run.fail("0 to a negative power");
      return std::pow(static_cast<double>(a), static_cast<double>(b));
    default:
      break;
  }
  if (b == 0) run.fail("division by zero");
  if (op == Op::Div) return static_cast<double>(a) / static_cast<double>(b);
  if (b == -1) {  // INT64_MIN / -1 does not fit
    if (op == Op::Mod) return 0;
    if (__builtin_sub_overflow(std::int64_t{0}, a, &r)) overflow(run, op);
    return r;
  }
  const std::int64_t rest = a % b;
  const bool below = rest != 0 && (rest < 0) != (b < 0);  // Python rounds down, C toward zero
  return op == Op::Mod ? rest + (below ? b : 0) : a / b - (below ? 1 : 0);
}

Value float_binary(Run& run, Op op, double a, double b) {
  switch (op) {
    case Op::Add:
      return a + b;
    case Op::Sub:
      return a - b;
    case Op::Mul:
      return a * b;
    case Op::Pow: {
      if (a == 0 && b < 0) run.fail("0 to a negative power");
      if (a < 0 && std::isfinite(a) && std::isfinite(b) && b != std::trunc(b)) {
        run.fail("a negative number to a fractional power");
      }
      const double r = std::pow(a, b);
      if (std::isinf(r) && std::isfinite(a) && std::isfinite(b)) overflow(run, op);
      return r;
    }
    default:
      break;
  }
  if (b == 0) run.fail("division by zero");
  if (op == Op::Div) return a / b;
  double rest = std::fmod(a, b);  // as CPython's float_divmod
  double whole = (a - rest) / b;
  if (rest != 0 && (b < 0) != (rest < 0)) {
    rest += b;
    whole -= 1;
  }
  if (op == Op::Mod) return rest == 0 ? std::copysign(0.0, b) : rest;
  if (whole == 0) return std::copysign(0.0, a / b);
  const double floor = std::floor(whole);
  return whole - floor > 0.5 ? floor + 1 : floor;
}

Value repeat(Run& run, const Value& v, std::int64_t times) {
  const auto n = static_cast<std::size_t>(std::max<std::int64_t>(times, 0));
  if (const Str* s = v.str()) {
    run.room(n, std::max<std::size_t>(s->text.size(), 1));
    std::string out;
    if (!s->text.empty()) {
      out.reserve(n * s->text.size());
      for (std::size_t i = 0; i < n; ++i) out += s->text;
    }
    return make_str(run, std::move(out), s->markup);
  }
  const auto& items = v.seq()->items;
  run.room(n, std::max<std::size_t>(items.size(), 1) * sizeof(Value));
  std::vector<Value> out;
  for (std::size_t i = 0; i < n && !items.empty(); ++i) {
    run.step(items.size());
    out.insert(out.end(), items.begin(), items.end());
  }
  return make_seq(run, v.seq()->type, std::move(out));
}

bool repeatable(const Value& v) {
  return v.str() != nullptr || (v.seq() != nullptr && v.seq()->type <= Seq::Type::Tuple);
}

Value add_strings(Run& run, const Str& a, const Str& b) {
  run.room(a.text.size() + b.text.size());
  if (a.markup == b.markup) return make_str(run, a.text + b.text, a.markup);
  const std::string x = a.markup ? a.text : escape_html(run, a.text);
  return make_str(run, x + (b.markup ? b.text : escape_html(run, b.text)), true);
}

// A bound of a slice, moved into [low, high] as Python does.
std::int64_t bound(const Value& v, std::int64_t n, std::int64_t low, std::int64_t high,
                   std::int64_t otherwise) {
  if (v.is<None>()) return otherwise;
  std::int64_t i = v.as_int();
  if (i < 0) i += n;
  return std::clamp(i, low, high);
}

}  // namespace

Value binary(Run& run, Op op, const Value& a, const Value& b) {
  for (const Value* v : {&a, &b}) {
    if (v->undefined()) run.fail("{}", v->get<Undefined>()->why->text);
  }
  if (a.integer() && b.integer()) return int_binary(run, op, a.as_int(), b.as_int());
  if (a.number() && b.number()) return float_binary(run, op, a.as_double(), b.as_double());
  if (op == Op::Add && a.str() != nullptr && b.str() != nullptr) {
    return add_strings(run, *a.str(), *b.str());
  }
  if (op == Op::Add && repeatable(a) && repeatable(b) && a.seq() != nullptr && b.seq() != nullptr &&
      a.seq()->type == b.seq()->type) {
    const auto &x = a.seq()->items, &y = b.seq()->items;
    run.room(x.size() + y.size(), sizeof(Value));
    std::vector<Value> items(x);
    items.insert(items.end(), y.begin(), y.end());
    return make_seq(run, a.seq()->type, std::move(items));
  }
  if (op == Op::Mul && repeatable(a) && b.integer()) return repeat(run, a, b.as_int());
  if (op == Op::Mul && a.integer() && repeatable(b)) return repeat(run, b, a.as_int());
  if (op == Op::Mod && a.str() != nullptr) {
    if (a.str()->markup) run.fail("'%' on a |safe string is not supported");
    return make_str(run, percent_format(run, a.str()->text, b));
  }
  run.fail("'{}' cannot take '{}' and '{}'", symbol(op), type_name(a), type_name(b));
}

Value negate(Run& run, const Value& v) {
  if (v.undefined()) run.fail("{}", v.get<Undefined>()->why->text);
  if (v.integer()) return int_binary(run, Op::Sub, 0, v.as_int());
  if (const auto* d = v.get<double>()) return -*d;
  run.fail("'-' cannot take '{}'", type_name(v));
}

Value slice(Run& run, const Value& v, const Value& start, const Value& stop, const Value& step) {
  if (v.undefined()) run.fail("{}", v.get<Undefined>()->why->text);
  const Str* s = v.str();
  if (s == nullptr && (v.seq() == nullptr || v.seq()->type > Seq::Type::Range)) {
    run.fail("a value of type '{}' cannot be sliced", type_name(v));
  }
  for (const Value* b : {&start, &stop, &step}) {
    if (!b->is<None>() && !b->integer()) {
      run.fail("a slice needs integers, not {}", type_name(*b));
    }
  }
  const std::int64_t by = step.is<None>() ? 1 : step.as_int();
  if (by == 0) run.fail("a slice's step must not be 0");
  const std::int64_t n = length(run, v);
  const std::int64_t low = by > 0 ? 0 : -1, high = by > 0 ? n : n - 1;
  const std::int64_t from = bound(start, n, low, high, by > 0 ? low : high);
  const std::int64_t to = bound(stop, n, low, high, by > 0 ? high : low);
  // |by| beyond n takes one element as n does, and cannot overflow below.
  const std::int64_t stride = std::clamp(by, -n - 1, n + 1);
  const auto more = [&](std::int64_t i) { return stride > 0 ? i < to : i > to; };
  if (s == nullptr) {
    std::vector<Value> items;
    for (std::int64_t i = from; more(i); i += stride) {
      items.push_back(v.seq()->items[static_cast<std::size_t>(i)]);
    }
    return make_seq(run, v.seq()->type, std::move(items));
  }
  const std::string_view text = s->text;
  if (!s->ascii) run.read(text.size());
  std::string out;
  if (stride == 1) {
    if (from < to && s->ascii) {
      out = text.substr(static_cast<std::size_t>(from), static_cast<std::size_t>(to - from));
    } else if (from < to) {
      const std::size_t begin = byte_of_char(text, static_cast<std::size_t>(from));
      out = text.substr(begin);
      out.resize(byte_of_char(out, static_cast<std::size_t>(to - from)));
    }
    return make_str(run, std::move(out), s->markup);
  }
  run.room(text.size(), sizeof(std::size_t));
  std::vector<std::size_t> places;  // of every character, and the end
  for (std::size_t i = 0; i < text.size(); i += char_at(text, i).bytes) places.push_back(i);
  places.push_back(text.size());
  for (std::int64_t i = from; more(i); i += stride) {
    const auto at = static_cast<std::size_t>(i);
    out += text.substr(places[at], places[at + 1] - places[at]);
  }
  return make_str(run, std::move(out), s->markup);
}

}  // namespace nibble::jinja
