// Tests: what may follow `is`.
#include <cmath>

#include "text/jinja/interp.h"
#include "text/jinja/print.h"

namespace nibble::jinja {
namespace {

template <auto f>
bool alone(Interp& in, const Value& v, const Args& args) {
  const Params none(in.run, "this test", args, {});
  return f(in.run, v);
}

template <auto f>
bool with_other(Interp& in, const Value& v, const Args& args) {
  const Params p(in.run, "this test", args, {"other"}, 1);
  return f(in.run, v, p.at(0));
}

bool defined(Run&, const Value& v) { return !v.undefined(); }
bool undefined(Run&, const Value& v) { return v.undefined(); }
bool none(Run&, const Value& v) { return v.is<None>(); }
bool boolean(Run&, const Value& v) { return v.is<bool>(); }
bool is_true(Run&, const Value& v) { return v.is<bool>() && *v.get<bool>(); }
bool is_false(Run&, const Value& v) { return v.is<bool>() && !*v.get<bool>(); }
bool integer(Run&, const Value& v) { return v.is<std::int64_t>(); }
bool real(Run&, const Value& v) { return v.is<double>(); }
bool number(Run&, const Value& v) { return v.number(); }
bool string(Run&, const Value& v) { return v.str() != nullptr; }
bool mapping(Run&, const Value& v) { return v.dict() != nullptr; }
bool is_iterable(Run&, const Value& v) { return iterable(v) || v.is<LoopPtr>(); }
bool sequence(Run&, const Value& v) {
  return v.undefined() || v.str() != nullptr || v.dict() != nullptr ||
         (v.seq() != nullptr && v.seq()->type <= Seq::Type::Range);
}
bool callable(Run&, const Value& v) {
  return v.undefined() || v.is<CallablePtr>() || v.is<LoopPtr>();
}
bool escaped(Run&, const Value& v) { return v.str() != nullptr && v.str()->markup; }
bool lower(Run& run, const Value& v) { return is_all_case(to_text(run, v), false); }
bool upper(Run& run, const Value& v) { return is_all_case(to_text(run, v), true); }
bool filter_name(Run& run, const Value& v) { return find_filter(to_text(run, v)) != nullptr; }
bool test_name(Run& run, const Value& v) { return find_test(to_text(run, v)) != nullptr; }

bool divisible(Run& run, const Value& v, const Value& by) {
  if (!v.number()) run.fail("expected a number, got {}", type_name(v));
  return binary(run, Expr::Op::Mod, v, by).as_double() == 0;
}
bool even(Run& run, const Value& v) { return divisible(run, v, 2); }
bool odd(Run& run, const Value& v) {
  if (!v.number()) run.fail("expected a number, got {}", type_name(v));
  return binary(run, Expr::Op::Mod, v, 2).as_double() == 1;
}

bool eq(Run& run, const Value& a, const Value& b) { return equal(run, a, b); }
bool ne(Run& run, const Value& a, const Value& b) { return !equal(run, a, b); }
bool lt(Run& run, const Value& a, const Value& b) { return compare(run, a, b) < 0; }
bool le(Run& run, const Value& a, const Value& b) { return compare(run, a, b) <= 0; }
bool gt(Run& run, const Value& a, const Value& b) { return compare(run, a, b) > 0; }
bool ge(Run& run, const Value& a, const Value& b) { return compare(run, a, b) >= 0; }
bool in_other(Run& run, const Value& v, const Value& all) { return contains(run, all, v); }

// Python's `is`: for None and booleans, which are what templates ask about, and shared objects.
bool same_as(Run&, const Value& a, const Value& b) {
  if (a.data().index() != b.data().index()) return false;
  return std::visit(
      [&](const auto& x) {
        using T = std::decay_t<decltype(x)>;
        const T& y = std::get<T>(b.data());
        if constexpr (std::is_arithmetic_v<T>)
          return x == y;
        else if constexpr (requires { x.get(); })
          return x.get() == y.get();
        else
          return std::is_same_v<T, None>;
      },
      a.data());
}

}  // namespace

Test find_test(std::string_view name) {
  static constexpr struct {
    std::string_view name;
    Test test;
  } tests[] = {
      {"!=", with_other<ne>},
      {"<", with_other<lt>},
      {"<=", with_other<le>},
      {"==", with_other<eq>},
      {">", with_other<gt>},
      {">=", with_other<ge>},
      {"boolean", alone<boolean>},
      {"callable", alone<callable>},
      {"defined", alone<defined>},
      {"divisibleby", with_other<divisible>},
      {"eq", with_other<eq>},
      {"equalto", with_other<eq>},
      {"escaped", alone<escaped>},
      {"even", alone<even>},
      {"false", alone<is_false>},
      {"filter", alone<filter_name>},
      {"float", alone<real>},
      {"ge", with_other<ge>},
      {"greaterthan", with_other<gt>},
      {"gt", with_other<gt>},
      {"in", with_other<in_other>},
      {"integer", alone<integer>},
      {"iterable", alone<is_iterable>},
      {"le", with_other<le>},
      {"lessthan", with_other<lt>},
      {"lower", alone<lower>},
      {"lt", with_other<lt>},
      {"mapping", alone<mapping>},
      {"ne", with_other<ne>},
      {"none", alone<none>},
      {"number", alone<number>},
      {"odd", alone<odd>},
      {"sameas", with_other<same_as>},
      {"sequence", alone<sequence>},
      {"string", alone<string>},
      {"test", alone<test_name>},
      {"true", alone<is_true>},
      {"undefined", alone<undefined>},
      {"upper", alone<upper>},
  };
  for (const auto& t : tests) {
    if (t.name == name) return t.test;
  }
  return nullptr;
}

}  // namespace nibble::jinja
