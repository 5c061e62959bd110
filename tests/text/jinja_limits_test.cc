// Hostile templates: each ends with an Error that says why, soon and in little memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <thread>

#include "base/error.h"
#include "text/jinja/template.h"

namespace nibble::jinja {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;

std::string render(std::string_view source, const Json& variables = Json::object(),
                   const Limits& limits = {}) {
  return Template(source).render(variables, limits);
}

// A tenth of the usual bounds: the tests meet them sooner.
constexpr Limits kSmall = {.steps = 2'000'000, .memory = 25u << 20};

std::string error_of(std::string_view source, const Json& variables = Json::object(),
                     const Limits& limits = kSmall) {
  try {
    render(source, variables, limits);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::string times(int n, std::string_view s) {
  std::string out;
  for (int i = 0; i < n; ++i) out += s;
  return out;
}

constexpr std::string_view kMemory = "MB of memory a template may use";
constexpr std::string_view kSteps = "it loops too long";

TEST(JinjaLimits, HugeResultsAreRefusedBeforeTheyAreMade) {
  for (const std::string_view source : {"{{ 'a' * 10**9 }}",
                                        "{{ 'abc' * 10**18 }}",
                                        "{{ [0] * 10**12 }}",
                                        "{{ (0,) * 10**18 }}",
                                        "{{ 'a'.center(10**15) }}",
                                        "{{ 'a'.ljust(10**18, 'é') }}",
                                        "{{ 'a'.zfill(10**12) }}",
                                        "{{ 'a'|indent(10**12) }}",
                                        "{{ 'a'|center(10**12) }}",
                                        "{{ [1]|batch(10**12, 0)|list }}",
                                        "{% set x = 'a' * 10**7 %}{{ x ~ x ~ x }}",
                                        "{% set x = 'a' * 10**7 %}{{ [x] * 9 ~ x }}",
                                        "{% set x = 'a' * 10**6 %}{{ x.replace('a', x) }}",
                                        "{% set x = 'a' * 10**5 %}{{ x.join(x) }}",
                                        "{{ ('a' * 10**7)|list }}",
                                        "{{ ('a,' * 10**7).split(',') }}",
                                        "{{ ('a ' * 10**7).split() }}",
                                        "{{ ('\n' * 10**7).splitlines() }}",
                                        "{% set x = '<' * 10**7 %}{{ x|e }}",
                                        "{% set x = '\\0' * 10**7 %}{{ [x] }}",
                                        "{% set x = '\\0' * 10**7 %}{{ x|tojson }}",
                                        "{% set x = 'a' * 10**7 %}{{ x.upper() }}",
                                        "{{ ('a' * 10**7)|title }}"}) {
    EXPECT_THAT(error_of(source), testing::AnyOf(HasSubstr(kMemory), HasSubstr(kSteps))) << source;
  }
}

TEST(JinjaLimits, GrowthInSmallStepsIsRefused) {
  EXPECT_THAT(error_of("{% set ns = namespace(s='ab') %}{% for i in range(99) %}"
                       "{% set ns.s = ns.s + ns.s %}{% endfor %}"),
              HasSubstr(kMemory));
  EXPECT_THAT(error_of("{% set ns = namespace(l=[1]) %}{% for i in range(99) %}"
                       "{% set ns.l = ns.l + ns.l %}{% endfor %}"),
              HasSubstr(kMemory));
  EXPECT_THAT(error_of("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}"),
              HasSubstr(kMemory));
  // Every level of the recursion holds a text of its own.
  EXPECT_THAT(error_of("{% macro m(n) %}{{ 'x' * 9999999 }}{{ m(n) }}{% endmacro %}{{ m(1) }}"),
              HasSubstr(kMemory));
}

TEST(JinjaLimits, SharedStructureDoesNotExplode) {
  const std::string doubling =
      "{% set ns = namespace(l=[], m=[]) %}{% for i in range(90) %}"
      "{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}";
  for (const std::string_view use :
       {"{{ ns.l == ns.m }}", "{{ ns.l < ns.m }}", "{{ ns.l }}", "{{ ns.l|tojson }}",
        "{{ ns.l in [ns.m] }}", "{{ ns.l|string }}"}) {
    EXPECT_THAT(error_of(doubling + std::string(use)),
                testing::AnyOf(HasSubstr(kSteps), HasSubstr(kMemory)))
        << use;
  }
}

TEST(JinjaLimits, LoopsEnd) {
  EXPECT_THAT(error_of("{{ range(10**12) }}"), HasSubstr("more than 100000"));
  EXPECT_THAT(
      error_of("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
      HasSubstr(kSteps));
  EXPECT_THAT(error_of("{% set s = 'a' * 10**6 %}{% for i in range(99999) %}{{ s.upper()|length }}"
                       "{% endfor %}"),
              HasSubstr(kSteps));
  EXPECT_THAT(error_of("{% set s = 'a' * 10**6 %}{{ s.rsplit('a' * 10**5 ~ 'b', 5)|length }}"
                       "{{ s.strip('b' * 10**5 ~ 'a') }}"),
              HasSubstr(kSteps));
  EXPECT_THAT(error_of("{% for i in range(99999) %}{{ 'a' * 10**6 in 'b' * 10**6 }}{% endfor %}"),
              HasSubstr(kSteps));
}

TEST(JinjaLimits, RecursionEnds) {
  for (const std::string_view source :
       {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(f) %}{{ f(f) }}{% endmacro %}{{ m(m) }}",
        "{% macro m(a=m()) %}{% endmacro %}{{ m() }}",
        "{% macro m() %}{% for i in [1] if m() %}{% endfor %}{% endmacro %}{{ m() }}",
        "{% macro m() %}{% call m() %}{% endcall %}{% endmacro %}{{ m() }}",
        "{% macro m() %}{% set x %}{% filter upper %}{{ [[((m()))]]|map('upper')|list }}{% "
        "endfilter %}"
        "{% endset %}{% endmacro %}{{ m() }}"}) {
    EXPECT_THAT(error_of(source), HasSubstr("nested too deeply")) << source;
  }
  EXPECT_THAT(
      error_of("{% set ns = namespace(l=[]) %}{% for i in range(999) %}{% set ns.l = [ns.l] %}"
               "{% endfor %}"),
      HasSubstr("nested more than 100 deep"));
}

TEST(JinjaLimits, DeepSyntaxIsRefused) {
  const int n = 20'000;
  for (const std::string& source :
       std::vector<std::string>{"{{ " + times(n, "(") + "1" + times(n, ")") + " }}",
                                "{{ " + times(n, "[") + times(n, "]") + " }}",
                                "{{ " + times(n, "{1:") + "1" + times(n, "}") + " }}",
                                "{{ " + times(n, "not ") + "1 }}",
                                "{{ " + times(n, "-") + "1 }}",
                                "{{ 1" + times(n, " + 1") + " }}",
                                "{{ a" + times(n, ".a") + " }}",
                                "{{ a" + times(n, "[0]") + " }}",
                                "{{ a" + times(n, "()") + " }}",
                                "{{ a" + times(n, "|e") + " }}",
                                "{{ a" + times(n, " is string") + " }}",
                                "{{ 1" + times(n, " if 1") + " }}",
                                "{{ 1" + times(n, " if 1 else 1") + " }}",
                                "{{ 1" + times(n, " and 1") + " }}",
                                "{{ 1" + times(n, " ** 1") + " }}",
                                "{{ a" + times(n, "(a") + times(n, ")") + " }}",
                                "{{ a" + times(n, "[a") + times(n, "]") + " }}",
                                times(n, "{% if 1 %}") + times(n, "{% endif %}"),
                                times(n / 2, "{% for i in a %}"),
                                times(n / 2, "{% macro m() %}"),
                                times(n / 2, "{% set a %}"),
                                "{% set " + times(n, "(") + "a" + times(n, ")") + " = 1 %}"}) {
    EXPECT_THAT(error_of(source), testing::AnyOf(HasSubstr("nested"), HasSubstr("chained")))
        << source.substr(0, 30);
  }
  EXPECT_THAT(error_of(std::string(Template::kMaxSource + 1, 'x')), HasSubstr("bytes"));
}

TEST(JinjaLimits, LongButFlatIsFine) {
  EXPECT_EQ(render("{{ 1" + times(1000, " ~ 1") + " }}"), times(1001, "1"));
  EXPECT_EQ(render("{% if 0 %}" + times(1000, "{% elif 0 %}") + "{% else %}x{% endif %}"), "x");
  EXPECT_EQ(render("{{ [" + times(1000, "1,") + "]|length }}"), "1000");
  EXPECT_EQ(
      render("{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(30) }}")
          .size(),
      52u);
}

TEST(JinjaLimits, IntegersDoNotOverflow) {
  const std::string low = "(-9223372036854775807 - 1)", high = "9223372036854775807";
  for (const std::string& source : std::vector<std::string>{
           high + " + 1", low + " - 1", "-" + low, low + " * -1", low + " // -1", low + "|abs",
           "10 ** 19", "2 ** 63", "(-2) ** 64", "9223372036854775808", "1e19|int",
           "'9223372036854775808'|int", "[" + high + ", 1]|sum"}) {
    EXPECT_THAT(error_of("{{ " + source + " }}"), HasSubstr("beyond 64 bits")) << source;
  }
  EXPECT_EQ(
      render("{{ " + low + " % -1 }} {{ 'abc'[::" + low + "] }} {{ 'abc'[::" + high +
             "] }} {{ 'abc'[" + low + ":" + high + "] }} {{ [1][" + low + "] }} {{ 'a'.zfill(" +
             low + ") }} {{ 'a'.center(" + low + ") }} {{ range(" + low + ", " + high + ", " +
             high + ")|list|length }} {{ (-2) ** 63 }} {{ 'a' * " + low + " }}"),
      "0 c a abc  a a 3 -9223372036854775808 ");
  EXPECT_THAT(error_of("{{ 'a b c'|truncate(" + low + ") }}"), HasSubstr("truncate"));
  EXPECT_THAT(error_of("{{ x }}", {{"x", 18446744073709551615u}}), HasSubstr("beyond 64 bits"));
}

TEST(JinjaLimits, DeepMessagesAreRefused) {
  EXPECT_THAT(error_of("{{ x }}", {{"x", Json::parse(times(5000, "[") + times(5000, "]"))}}),
              HasSubstr("nested more than 100 deep"));
  EXPECT_EQ(render("{{ x|length }}", {{"x", Json::parse(times(90, "[") + times(90, "]"))}}), "1");
}

TEST(JinjaLimits, MemoryIsGivenBack) {
  Limits limits;
  limits.memory = 1 << 20;
  EXPECT_EQ(render("{% for i in range(1000) %}{% set x = 'a' * 100000 %}{% endfor %}done",
                   Json::object(), limits),
            "done");
}

TEST(JinjaLimits, NothingThatCouldFormACycleIsStored) {
  for (const std::string_view source :
       {"{% set ns = namespace() %}{% set ns.x = ns %}",
        "{% set ns = namespace() %}{% set x = [ns] %}",
        "{% macro m() %}{% endmacro %}{% set x = {'m': m} %}",
        "{% for x in [1] %}{{ [loop] }}{% endfor %}", "{% set ns = namespace(f=''.upper) %}",
        "{% macro m() %}{{ varargs }}{% endmacro %}{{ m(m) }}"}) {
    EXPECT_THAT(error_of(source), HasSubstr("inside a container is not supported")) << source;
  }
}

TEST(JinjaLimits, ErrorsNameTheLine) {
  EXPECT_THAT(error_of("a\n{{ 1 }}\n{{ x.y }}"),
              testing::StartsWith("chat template, line 3: 'x' is undefined"));
  EXPECT_THAT(error_of("\n\n{%- if x %}\n{{ 1 +\n+ }}"),
              testing::StartsWith("chat template, line 5: "));
  EXPECT_THAT(error_of("{% macro m() %}\n{{ raise_exception('no') }}{% endmacro %}\n\n{{ m() }}"),
              testing::StartsWith("chat template, line 2: no"));
  EXPECT_THAT(error_of("{# \n #}{{ [1,\n 2,\n 3/0] }}"),
              testing::StartsWith("chat template, line 4: division"));
  EXPECT_THAT(error_of("{% if 1 %}\n{% for x in y %}\n"), HasSubstr("'for' has no 'endfor'"));
  EXPECT_THAT(error_of("\n{% extends 'x' %}"),
              HasSubstr("line 2: the tag 'extends' is not supported"));
  EXPECT_THAT(error_of("{{ 1|urlize }}"), HasSubstr("the filter 'urlize' is not supported"));
  EXPECT_THAT(error_of("{{ 'a'.encode() }}"),
              HasSubstr("the method 'encode' of 'str' is not supported"));
  EXPECT_THAT(error_of("{{ [].append(1) }}"), HasSubstr("which the sandbox refuses"));
}

TEST(Jinja, OneTemplateManyThreads) {
  const Template t(
      "{% set ns = namespace(s='x') %}{% for m in l %}{% set ns.s = ns.s + m ~ 'é' %}{% endfor %}"
      "{{ ns.s|upper }}{{ ['a'] + l }}");
  const Json variables = {{"l", {"a", "b", "c"}}};
  const std::string want = t.render(variables);
  std::vector<std::string> got(4);
  std::vector<std::thread> threads;
  for (auto& g : got) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) g = t.render(variables);
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(got, testing::Each(want));
}

// Any string a message may hold comes back as it is, whatever it contains.
TEST(Jinja, TextOfMessagesIsOnlyText) {
  rc::check("content passes through", [](const std::string& s) {
    const Template t(
        "{% for m in messages %}{{ m.content }}{% endfor %}|{{ messages[0]['content'][:] }}");
    RC_ASSERT(t.render({{"messages", {{{"content", s}}}}}) == s + "|" + s);
  });
  rc::check("JSON comes back", [](const std::vector<std::string>& strings) {
    Json list = Json::array();
    for (const auto& s : strings) {
      std::string ascii;
      for (const char c : s) ascii += static_cast<char>(c & 0x7F);
      list.push_back(ascii);
    }
    RC_ASSERT(Json::parse(Template("{{ l|tojson }}").render({{"l", list}})) == list);
    RC_ASSERT(Json::parse(
                  Template("{{ l|tojson(indent=2, ensure_ascii=true) }}").render({{"l", list}})) ==
              list);
  });
}

}  // namespace
}  // namespace nibble::jinja
