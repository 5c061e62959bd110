#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "builders.h"

namespace nibble {
namespace {

using test::bytes_of;
using test::error_of;
using test::SafetensorsFile;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Safetensors, GivesEveryTensorWithItsShapeAndBytes) {
  const std::string file = SafetensorsFile()
                               .add("a", "F32", {2, 1}, test::raw<float>({1.5f, -2.0f}))
                               .add("empty", "F16", {0, 7}, "")
                               .add("b", "I64", {}, test::raw<std::int64_t>({42}))
                               .build();
  const auto tensors = parse_safetensors(bytes_of(file), "x");
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, DType::F32);
  EXPECT_THAT(tensors[0].shape, ElementsAre(2, 1));
  EXPECT_EQ(std::memcmp(tensors[0].data.data(), "\0\0\xc0\x3f\0\0\0\xc0", 8), 0);
  EXPECT_EQ(tensors[1].data.size(), 0u);
  EXPECT_EQ(tensors[2].dtype, DType::I64);
  EXPECT_TRUE(tensors[2].shape.empty());
}

TEST(Safetensors, HeaderOrderAndMetadataDoNotMatter) {
  const std::string file = SafetensorsFile::build(
      R"({"late":{"data_offsets":[2,3],"shape":[1],"dtype":"U8"},"__metadata__":{"format":"pt"},)"
      R"("early":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   )",
      "abc");
  const auto tensors = parse_safetensors(bytes_of(file), "x");
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "early");
  EXPECT_EQ(tensors[1].data[0], std::byte{'c'});
}

TEST(Safetensors, AFileCutAnywhereIsAnErrorNamingIt) {
  const std::string file =
      SafetensorsFile().add("a", "F32", {2}, "12345678").add("b", "U8", {3}, "xyz").build();
  for (std::size_t size = 0; size < file.size(); ++size)
    EXPECT_THAT(error_of([&] {
                  parse_safetensors(bytes_of(std::string_view(file).substr(0, size)), "cut.st");
                }),
                HasSubstr("cut.st"))
        << size;
}

TEST(Safetensors, AHeaderLengthBeyondFileOrLimitIsAnError) {
  std::string file = SafetensorsFile().add("a", "U8", {1}, "x").build();
  for (const std::uint64_t length : {~0ull, 1ull << 63, 100'000'001ull, 60ull, 0ull}) {
    std::memcpy(file.data(), &length, 8);
    EXPECT_THAT(error_of([&] { parse_safetensors(bytes_of(file), "f"); }), HasSubstr("f: "));
  }
}

struct BadHeader {
  const char *name, *header, *data, *message;
};
void PrintTo(const BadHeader& b, std::ostream* out) { *out << b.name; }
class BadSafetensors : public ::testing::TestWithParam<BadHeader> {};

TEST_P(BadSafetensors, IsAnErrorThatSaysWhy) {
  const std::string file = SafetensorsFile::build(GetParam().header, GetParam().data);
  const std::string message = error_of([&] { parse_safetensors(bytes_of(file), "file.st"); });
  EXPECT_THAT(message, HasSubstr("file.st: "));
  EXPECT_THAT(message, HasSubstr(GetParam().message));
}

#define T(fields) "{\"t\":{" fields "}}"
INSTANTIATE_TEST_SUITE_P(
    , BadSafetensors,
    ::testing::Values(
        BadHeader{"Overlap",
                  R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                  R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                  "xyz", "\"b\": its data overlaps"},
        BadHeader{"SamePlace",
                  R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                  R"("b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                  "xy", "overlaps"},
        BadHeader{"Gap", T(R"("dtype":"U8","shape":[1],"data_offsets":[1,2])"), "xy", "a gap"},
        BadHeader{"Trailing", T(R"("dtype":"U8","shape":[1],"data_offsets":[0,1])"), "xy",
                  "1 bytes after the last tensor"},
        BadHeader{"BeyondEnd", T(R"("dtype":"U8","shape":[3],"data_offsets":[0,3])"), "xy",
                  "\"t\": its data at 0..3 lies beyond the end"},
        BadHeader{"Backwards", T(R"("dtype":"U8","shape":[1],"data_offsets":[2,1])"), "xy",
                  "beyond the end"},
        BadHeader{"HugeOffset",
                  T(R"("dtype":"U8","shape":[1],"data_offsets":[18446744073709551615,0])"), "x",
                  "beyond the end"},
        BadHeader{"WrongSize", T(R"("dtype":"F32","shape":[1],"data_offsets":[0,2])"), "xy",
                  "\"t\": 2 bytes stored, but its shape needs 4"},
        BadHeader{"TooManyBytes", T(R"("dtype":"U8","shape":[1],"data_offsets":[0,2])"), "xy",
                  "\"t\": 2 bytes stored, but its shape needs 1"},
        BadHeader{"ShapeOverflow",
                  T(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), "",
                  "\"t\": its shape overflows"},
        BadHeader{"DimensionOverflow",
                  T(R"("dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,0])"), "",
                  "overflows"},
        BadHeader{"NegativeDimension", T(R"("dtype":"U8","shape":[-1],"data_offsets":[0,0])"), "",
                  "a negative number"},
        BadHeader{"FractionalDimension", T(R"("dtype":"U8","shape":[1.0],"data_offsets":[0,1])"),
                  "x", "a fraction"},
        BadHeader{"TooManyDimensions",
                  T(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])"), "x",
                  "\"t\": more than 8 numbers"},
        BadHeader{"ThreeOffsets", T(R"("dtype":"U8","shape":[1],"data_offsets":[0,1,1])"), "x",
                  "more than 2"},
        BadHeader{"OneOffset", T(R"("dtype":"U8","shape":[1],"data_offsets":[0])"), "x",
                  "two \"data_offsets\""},
        BadHeader{"UnknownType", T(R"("dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1])"), "x",
                  "\"t\": dtype \"F8_E4M3\" is not supported"},
        BadHeader{"NoType", T(R"("shape":[1],"data_offsets":[0,1])"), "x", "needs \"dtype\""},
        BadHeader{"NoShape", T(R"("dtype":"U8","data_offsets":[0,1])"), "x", "\"shape\""},
        BadHeader{"UnknownField", T(R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1)"), "x",
                  "\"x\" is unknown"},
        BadHeader{"FieldTwice", T(R"("dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1])"),
                  "x", "given twice"},
        BadHeader{"NameTwice",
                  R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                  R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                  "xy", "\"a\" is given twice"},
        BadHeader{"EmptyName", R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x",
                  "not printable"},
        BadHeader{"ControlInName",
                  R"({"a\u001b[2J":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x",
                  "\"a\\x1b[2J\" is not printable"},
        BadHeader{"BadUtf8Name", "{\"a\xff\":{}}", "", "not valid JSON"},
        BadHeader{"NotAnObject", R"({"t":5})", "", "unexpected a number"},
        BadHeader{"ListForTensor", R"({"t":[1]})", "", "unexpected an array"},
        BadHeader{"Deep", R"({"t":{"shape":[[[[[[1]]]]]]}})", "", "unexpected an array"},
        BadHeader{"DeepMetadata", R"({"__metadata__":{"a":{"b":1}}})", "", "unexpected an object"},
        BadHeader{"Null", R"({"t":null})", "", "unexpected null"},
        BadHeader{"JunkAfter", "{} x", "", "not valid JSON"},
        BadHeader{"Unclosed", R"({"t":{"dtype":)", "", "not valid JSON"},
        BadHeader{"List", "[]", "", "no header"}),
    [](const auto& param) { return std::string(param.param.name); });
#undef T

// Whatever the bytes, the answer is an Error or tensors that lie inside the file.
RC_GTEST_PROP(Safetensors, DamageNeverEscapes, ()) {
  std::string file = SafetensorsFile()
                         .add("model.a", "F32", {2, 3}, std::string(24, 'a'))
                         .add("model.b", "BF16", {4}, std::string(8, 'b'))
                         .build();
  const auto edits = *rc::gen::container<std::vector<std::pair<std::uint16_t, std::uint8_t>>>(
      rc::gen::arbitrary<std::pair<std::uint16_t, std::uint8_t>>());
  for (const auto& [at, byte] : edits) file[at % file.size()] = static_cast<char>(byte);
  const auto all = bytes_of(file);
  try {
    for (const auto& t : parse_safetensors(all, "x")) {
      RC_ASSERT(t.data.data() >= all.data());
      RC_ASSERT(t.data.data() + t.data.size() <= all.data() + all.size());
      std::uint64_t bytes = dtype_size(t.dtype);
      for (const auto d : t.shape) bytes *= static_cast<std::uint64_t>(d);
      RC_ASSERT(bytes == t.data.size());
    }
  } catch (const Error&) {
  }
}

}  // namespace
}  // namespace nibble
