#include "checkpoint/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "builders.h"

namespace nibble {
namespace {

using test::bytes_of;
using test::error_of;
using test::GgufFile;
using test::put;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string error(const std::string& file) {
  return error_of([&] { Gguf(bytes_of(file), "f.gguf"); });
}

GgufFile sample() {
  GgufFile f;
  f.string("name", "text").u32("n", 7).f32("x", 0.5f).boolean("flag", true);
  f.strings("words", {"a", "", "bc"}).i32s("numbers", {1, -2, 3});
  f.f32_tensor("one", {2, 3}, {1, 2, 3, 4, 5, 6});
  f.tensor("two", 8, {32}, std::string(34, 'q'));
  return f;
}

TEST(Gguf, GivesMetadataAndTensors) {
  for (const std::uint32_t version : {2u, 3u}) {
    GgufFile f = sample();
    f.version = version;
    const std::string file = f.build();
    const Gguf g(bytes_of(file), "f.gguf");
    EXPECT_EQ(g.version(), version);
    EXPECT_EQ(g.string("name"), "text");
    EXPECT_EQ(g.integer("n", 0, 10), 7);
    EXPECT_EQ(g.number("n"), 7);
    EXPECT_EQ(g.number("x"), 0.5);
    EXPECT_EQ(g.boolean("flag"), true);
    EXPECT_THAT(g.strings("words"), ElementsAre("a", "", "bc"));
    EXPECT_THAT(g.integers("numbers"), ElementsAre(1, -2, 3));
    EXPECT_EQ(g.string("none"), std::nullopt);
    EXPECT_TRUE(g.strings("none").empty());
    ASSERT_EQ(g.tensors().size(), 2u);
    const GgufTensor* t = g.tensor("one");
    ASSERT_NE(t, nullptr);
    EXPECT_EQ(t->rank, 2);
    EXPECT_EQ(t->shape[0], 2);
    EXPECT_EQ(t->columns(), 3);
    EXPECT_EQ(t->row_bytes(), 12);
    EXPECT_EQ(t->data.size(), 24u);
    EXPECT_EQ(static_cast<char>(g.tensor("two")->data[33]), 'q');
    EXPECT_EQ(g.tensor("three"), nullptr);
  }
}

TEST(Gguf, EveryIntegerWidth) {
  const std::pair<std::uint32_t, std::size_t> kinds[] = {{0, 1}, {1, 1}, {2, 2},  {3, 2},
                                                         {4, 4}, {5, 4}, {10, 8}, {11, 8}};
  for (const auto& [kind, size] : kinds) {
    std::string value(size, '\0');
    value[0] = 100;
    const std::string file = GgufFile().bytes("k", kind, value).build();
    EXPECT_EQ(Gguf(bytes_of(file), "f").integer("k", 0, 100), 100) << kind;
  }
  const std::string file = GgufFile().bytes("k", 10, std::string(8, '\xff')).build();
  EXPECT_THROW(Gguf(bytes_of(file), "f").integer("k", INT64_MIN, INT64_MAX), Error);
}

TEST(Gguf, AValueOfAnotherKindOrRangeNamesItsKey) {
  const std::string file = sample().build();
  const Gguf g(bytes_of(file), "f.gguf");
  const auto says = [](std::string_view key, std::string_view what) {
    return AllOf(HasSubstr("f.gguf: "), HasSubstr(key), HasSubstr(what));
  };
  EXPECT_THAT(error_of([&] { g.integer("name", 0, 9); }), says("name", "must be an integer"));
  EXPECT_THAT(error_of([&] { g.integer("n", 0, 6); }), says("n", "got 7"));
  EXPECT_THAT(error_of([&] { g.integer("numbers", 0, 6); }), says("numbers", "an integer"));
  EXPECT_THAT(error_of([&] { g.number("flag"); }), says("flag", "finite number"));
  EXPECT_THAT(error_of([&] { g.boolean("n"); }), says("n", "boolean"));
  EXPECT_THAT(error_of([&] { g.string("words"); }), says("words", "string"));
  EXPECT_THAT(error_of([&] { g.strings("numbers"); }), says("numbers", "list of strings"));
  EXPECT_THAT(error_of([&] { g.strings("name"); }), says("name", "must be a list"));
  EXPECT_THAT(error_of([&] { g.integers("words"); }), says("words", "list of integers"));
  const std::string nan = GgufFile().f32("k", std::nanf("")).build();
  EXPECT_THAT(error_of([&] { Gguf(bytes_of(nan), "f").number("k"); }), HasSubstr("finite"));
}

TEST(Gguf, AFileCutAnywhereIsAnErrorNamingIt) {
  const std::string file = sample().build();
  for (std::size_t size = 0; size < file.size(); ++size)
    EXPECT_THAT(error(file.substr(0, size)), HasSubstr("f.gguf: ")) << size;
}

TEST(Gguf, OtherVersionsAndByteOrdersAreNamed) {
  GgufFile f;
  f.version = 1;
  EXPECT_THAT(error(f.build()), HasSubstr("version 1 is not supported"));
  f.version = 0x03000000;
  EXPECT_THAT(error(f.build()), HasSubstr("big-endian"));
  EXPECT_THAT(error("GGML12345678"), HasSubstr("not a GGUF file"));
}

TEST(Gguf, CountsBeyondTheFileCostNothing) {
  // The second times 4 bytes wraps to nothing.
  for (const std::uint64_t extra :
       {std::uint64_t{1} << 40, std::uint64_t{1} << 62, ~std::uint64_t{0} - 8}) {
    GgufFile f = sample();
    f.extra_keys = extra;
    EXPECT_THAT(error(f.build()), HasSubstr("do not fit the file"));
    f.extra_keys = 0;
    f.extra_tensors = extra;
    EXPECT_THAT(error(f.build()), HasSubstr("do not fit the file"));
    std::string list, string, nested;
    put<std::uint32_t>(list, 6);
    put(list, extra);
    EXPECT_THAT(error(GgufFile().bytes("k", 9, list).build()),
                AllOf(HasSubstr("\"k\""), HasSubstr("more than the file holds")));
    put(string, extra);
    EXPECT_THAT(error(GgufFile().bytes("k", 8, string).build()), HasSubstr("truncated"));
    for (const std::uint32_t inner : {8u, 9u}) {  // lists of strings, of lists
      nested.clear();
      put(nested, inner);
      put(nested, extra);
      EXPECT_THAT(error(GgufFile().bytes("k", 9, nested).build()), HasSubstr("truncated"));
    }
  }
  GgufFile one_more = sample();
  one_more.extra_keys = 1;
  EXPECT_THAT(error(one_more.build()), HasSubstr("f.gguf: "));
}

TEST(Gguf, ArraysNestOnlySoDeep) {
  const auto nest = [](int depth) {
    std::string s;
    for (int i = 0; i < depth; ++i) {
      put<std::uint32_t>(s, i + 1 < depth ? 9 : 4);
      put<std::uint64_t>(s, 1);
    }
    put<std::uint32_t>(s, 5);
    return GgufFile().bytes("k", 9, s).f32_tensor("t", {1}, {1}).build();
  };
  EXPECT_NO_THROW(Gguf(bytes_of(nest(1)), "f"));
  EXPECT_NO_THROW(Gguf(bytes_of(nest(4)), "f"));
  EXPECT_THAT(error(nest(5)), AllOf(HasSubstr("\"k\""), HasSubstr("nested deeper")));
  EXPECT_THAT(error(nest(1000)), HasSubstr("nested deeper"));
}

TEST(Gguf, BadKeys) {
  EXPECT_THAT(error(GgufFile().u32("a", 1).u32("a", 2).build()), HasSubstr("\"a\" is given twice"));
  EXPECT_THAT(error(GgufFile().u32("\xff", 1).build()), HasSubstr("not printable UTF-8"));
  EXPECT_THAT(error(GgufFile().u32("", 1).build()), HasSubstr("not printable UTF-8"));
  EXPECT_THAT(error(GgufFile().bytes("k", 13, "12345678").build()),
              AllOf(HasSubstr("\"k\""), HasSubstr("unknown value type 13")));
}

TEST(Gguf, BadTensors) {
  const std::string data(64, 'x');
  const auto one = [&](std::string_view name, std::uint32_t type, std::vector<std::int64_t> shape,
                       std::int64_t shift = 0) {
    return GgufFile().tensor(name, type, std::move(shape), data, shift).build();
  };
  EXPECT_THAT(error(one("t", 0, {})), AllOf(HasSubstr("\"t\""), HasSubstr("0 dimensions")));
  EXPECT_THAT(error(one("t", 0, {1, 1, 1, 1, 1})), HasSubstr("5 dimensions"));
  EXPECT_THAT(error(one("t", 0, {4, 0})), HasSubstr("a dimension of 0"));
  EXPECT_THAT(error(one("t", 0, {-1})), HasSubstr("a dimension of 18446744073709551615"));
  EXPECT_THAT(error(one("t", 0, {1ll << 40, 1ll << 40})), HasSubstr("its shape overflows"));
  EXPECT_THAT(error(one("t", 0, {INT64_MAX})), HasSubstr("its shape overflows"));
  EXPECT_THAT(error(one("t", 0, {1ll << 40})), HasSubstr("beyond the end"));
  EXPECT_THAT(error(one("t", 0, {17})), HasSubstr("beyond the end"));
  EXPECT_THAT(error(one("t", 0, {4}, 64)), HasSubstr("beyond the end"));
  EXPECT_THAT(error(one("t", 0, {4}, -32)), HasSubstr("beyond the end"));
  EXPECT_THAT(error(one("t", 0, {4}, 8)), HasSubstr("not aligned to 32"));
  EXPECT_THAT(error(one("t", 2, {2, 31})), HasSubstr("no multiple of a Q4_0 block (32)"));
  EXPECT_THAT(error(one("t", 23, {256})),
              AllOf(HasSubstr("\"t\": the type IQ4_XS is not supported"), HasSubstr("Q6_K")));
  EXPECT_THAT(error(one("t", 4711, {256})), HasSubstr("number 4711"));
  EXPECT_THAT(error(one("t\x07", 0, {4})), HasSubstr("\"t\\x07\" is not printable"));
  EXPECT_THAT(error(GgufFile().tensor("t", 0, {4}, data).tensor("t", 0, {4}, data).build()),
              HasSubstr("\"t\" is given twice"));
  EXPECT_THAT(error(GgufFile().tensor("a", 0, {16}, data).tensor("b", 0, {8}, data, -32).build()),
              AllOf(HasSubstr("\"a\" and \"b\""), HasSubstr("overlap")));
  EXPECT_NO_THROW(Gguf(bytes_of(one("t", 0, {16})), "f"));
}

TEST(Gguf, Alignment) {
  const auto with = [](std::uint32_t alignment) {
    return GgufFile().u32("general.alignment", alignment).f32_tensor("t", {1}, {7});
  };
  // Aligned to 8, the data begins elsewhere than the builder's 32.
  std::string file = with(8).header();
  file.resize((file.size() + 7) / 8 * 8);
  put(file, 7.0f);
  float value = 0;
  std::memcpy(&value, Gguf(bytes_of(file), "f").tensor("t")->data.data(), 4);
  EXPECT_EQ(value, 7);
  EXPECT_THAT(error(with(0).build()), HasSubstr("general.alignment"));
  EXPECT_THAT(error(with(24).build()), HasSubstr("no power of two"));
  EXPECT_THAT(error(with(1u << 31).build()), HasSubstr("general.alignment"));
}

// Whatever the bytes, the answer is an Error or tensors that lie inside the file, apart.
RC_GTEST_PROP(Gguf, DamageNeverEscapes, ()) {
  std::string file = sample().build();
  const auto edits = *rc::gen::container<std::vector<std::pair<std::uint16_t, std::uint8_t>>>(
      rc::gen::arbitrary<std::pair<std::uint16_t, std::uint8_t>>());
  for (const auto& [at, byte] : edits) file[at % file.size()] = static_cast<char>(byte);
  const auto all = bytes_of(file);
  try {
    const Gguf g(all, "x");
    for (const auto& t : g.tensors()) {
      RC_ASSERT(t.data.data() >= all.data());
      RC_ASSERT(t.data.data() + t.data.size() <= all.data() + all.size());
    }
    g.strings("words");
    g.integers("numbers");
  } catch (const Error&) {
  }
}

}  // namespace
}  // namespace nibble
