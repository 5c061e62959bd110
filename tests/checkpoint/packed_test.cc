#include "checkpoint/packed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <limits>

#include "builders.h"

namespace nibble {
namespace {

using test::bfloats;
using test::error_of;
using test::halves;
using test::raw;
using test::SafetensorsFile;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

std::string quantization(const std::string& weights, const std::string& more = "") {
  return R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":)"
         R"({"group_0":{"targets":["Linear"],"weights":)" +
         weights + "}}" + more + "}";
}
std::string int4(int group, bool symmetric, const std::string& more = "") {
  return fmt::format(
      R"({{"num_bits":4,"type":"int","strategy":"group","group_size":{},"symmetric":{}{}}})", group,
      symmetric, more);
}
std::string config(const std::string& quantization_config) {
  return R"({"architectures":["LlamaForCausalLM"],"hidden_size":4,"num_hidden_layers":1,)"
         R"("num_attention_heads":2,"intermediate_size":8,"vocab_size":3,)"
         R"("quantization_config":)" +
         quantization_config + "}";
}

using Files = std::map<std::string, std::string>;

// The parts of a [n, k] matrix "m.weight", by name.
struct Matrix {
  std::int64_t n, k;
  int group;
  bool symmetric = true;
  std::vector<std::uint8_t> codes, zeros;  // [n, k], [n, k / group]
  std::vector<float> scales;               // [n, k / group]

  Matrix(std::int64_t rows, std::int64_t columns, int columns_a_scale, bool sym)
      : n(rows), k(columns), group(columns_a_scale), symmetric(sym) {
    for (std::int64_t i = 0; i < n * k; ++i)
      codes.push_back(static_cast<std::uint8_t>((i * 7 + i / 16) % 16));
    for (std::int64_t i = 0; i < n * k / group; ++i) {
      scales.push_back((i % 2 ? -1.0f : 1.0f) * static_cast<float>(i + 1) / 64);
      zeros.push_back(static_cast<std::uint8_t>((i * 5 + 3) % 16));
    }
  }
  std::string packed() const {
    std::string s;
    for (std::size_t i = 0; i < codes.size(); i += 8) {
      std::uint32_t word = 0;
      for (std::size_t j = 0; j < 8; ++j) word |= std::uint32_t{codes[i + j]} << (4 * j);
      test::put(s, word);
    }
    return s;
  }
  std::string packed_zeros() const {
    const auto groups = static_cast<std::size_t>(k / group), rows = static_cast<std::size_t>(n);
    std::vector<std::uint32_t> words((rows + 7) / 8 * groups);
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t g = 0; g < groups; ++g)
        words[r / 8 * groups + g] |= std::uint32_t{zeros[r * groups + g]} << (4 * (r % 8));
    return raw(words);
  }
  std::string byte_zeros() const {
    std::string s;
    for (const auto z : zeros) s += static_cast<char>(z - 8);
    return s;
  }
  std::vector<float> values() const {
    std::vector<float> v;
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const std::size_t g = i / static_cast<std::size_t>(group);
      v.push_back(static_cast<float>(codes[i] - (symmetric ? 8 : zeros[g])) * scales[g]);
    }
    return v;
  }
  std::int64_t groups() const { return k / group; }
  // The whole checkpoint; `zeros_as`: "", "I32" or "I8".
  Files files(const std::string& scale_type = "F16", const std::string& zeros_as = "") const {
    SafetensorsFile f;
    f.add("m.weight_packed", "I32", {n, k / 8}, packed());
    f.add("m.weight_scale", scale_type, {n, groups()},
          scale_type == "F16"    ? halves(scales)
          : scale_type == "BF16" ? bfloats(scales)
                                 : raw(scales));
    f.add("m.weight_shape", "I64", {2}, raw<std::int64_t>({n, k}));
    if (zeros_as == "I32")
      f.add("m.weight_zero_point", "I32", {(n + 7) / 8, groups()}, packed_zeros());
    if (zeros_as == "I8") f.add("m.weight_zero_point", "I8", {n, groups()}, byte_zeros());
    return {{"config.json", config(quantization(int4(group, symmetric)))},
            {"model.safetensors", f.build()}};
  }
};

TEST(Packed, SymmetricOfEveryGroupAndScaleType) {
  for (const int group : {32, 64, 128})
    for (const std::string type : {"F16", "BF16", "F32"}) {
      const Matrix m(3, 256, group, true);
      const Files files = m.files(type);
      const auto c = open_hf(test::directory(files));
      EXPECT_EQ(c->format(), "compressed-tensors");
      EXPECT_TRUE(c->has("m.weight"));
      const auto w = c->weight("m.weight", 3, 256);
      EXPECT_EQ(w->format().type, WeightType::Int4);
      EXPECT_EQ(w->format().group, group);
      EXPECT_TRUE(w->format().scales_are_f16);
      WeightRows rows;
      w->read(0, 3, rows);
      EXPECT_EQ(rows.codes, m.codes);
      EXPECT_EQ(rows.scales, m.scales);
      EXPECT_TRUE(rows.offsets.empty());
      EXPECT_EQ(dequantise(*w, 0, 3), m.values());
      w->read(2, 1, rows);  // shrinks
      EXPECT_EQ(rows.codes, std::vector(m.codes.begin() + 512, m.codes.end()));
      w->release(0, 3);
    }
}

TEST(Packed, ZeroPointsInEitherForm) {
  for (const std::string form : {"I32", "I8"}) {
    const Matrix m(11, 128, 64, false);  // rows that do not fill the last word of zero points
    const Files files = m.files("F16", form);
    const auto w = open_hf(test::directory(files))->weight("m.weight", 11, 128);
    EXPECT_EQ(w->format().type, WeightType::Int4Aff);
    EXPECT_EQ(dequantise(*w, 0, 11), m.values()) << form;
    const auto all = m.values();
    EXPECT_EQ(dequantise(*w, 9, 2), std::vector(all.begin() + 9 * 128, all.end())) << form;
  }
}

TEST(Packed, FormatSaysWhetherFp16HoldsScalesAndOffsets) {
  const auto fits = [](const Matrix& m, const std::string& type, const std::string& zeros) {
    const Files files = m.files(type, zeros);
    return open_hf(test::directory(files))->weight("m.weight", m.n, m.k)->format().scales_are_f16;
  };
  Matrix m(2, 32, 32, true);
  m.scales = {0.1f, 1};
  EXPECT_FALSE(fits(m, "F32", ""));
  EXPECT_TRUE(fits(m, "F16", ""));  // as stored: rounded
  m.scales = {0x1p-24f, 65504};
  EXPECT_TRUE(fits(m, "F32", ""));
  m.scales = {0x1p-25f, 1};
  EXPECT_FALSE(fits(m, "F32", ""));
  EXPECT_FALSE(fits(m, "BF16", ""));
  m.scales = {0x1p16f, 1};
  EXPECT_FALSE(fits(m, "BF16", ""));
  Matrix a(2, 32, 32, false);
  a.scales = {0.5f, 0.25f};
  EXPECT_TRUE(fits(a, "F16", "I32"));
  a.scales = {0x1.004p0f, 0.25f};  // times an odd zero point: more than 11 bits
  a.zeros = {7, 8};
  EXPECT_FALSE(fits(a, "F16", "I32"));
}

TEST(Packed, ListsOneTensorForAllItsParts) {
  const Files files = Matrix(8, 64, 32, false).files("F16", "I32");
  const auto list = open_hf(test::directory(files))->tensors();
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].name, "m.weight");
  EXPECT_THAT(list[0].shape, ::testing::ElementsAre(8, 64));
  EXPECT_EQ(list[0].stored_type, "int4 g32 zero-point");
  EXPECT_EQ(list[0].bytes, 8u * 32 + 2 * 16 + 16 + 8);
}

TEST(Packed, NonFiniteScalesAreNamed) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e38f}) {
    Matrix m(2, 64, 32, true);
    m.scales[3] = bad;
    const Files files = m.files("F32");
    const auto w = open_hf(test::directory(files))->weight("m.weight", 2, 64);
    EXPECT_NO_THROW(dequantise(*w, 0, 1));
    EXPECT_THAT(error_of([&] { dequantise(*w, 0, 2); }),
                AllOf(HasSubstr("\"m.weight_scale\""), HasSubstr("not finite")));
  }
}

RC_GTEST_PROP(Packed, AnyCodesAndScalesComeBack, (bool symmetric)) {
  Matrix m(*rc::gen::inRange(1, 20), 64, 32, symmetric);
  for (auto& c : m.codes) c = *rc::gen::inRange<std::uint8_t>(0, 16);
  for (auto& z : m.zeros) z = *rc::gen::inRange<std::uint8_t>(0, 16);
  for (auto& s : m.scales) s = static_cast<float>(*rc::gen::inRange(-1000, 1000)) / 4096;
  const Files files = m.files("F16", symmetric ? "" : "I32");
  const auto w = open_hf(test::directory(files))->weight("m.weight", m.n, m.k);
  RC_ASSERT(dequantise(*w, 0, m.n) == m.values());
}

struct BadParts {
  const char* name;
  std::vector<std::int64_t> packed, scale, shape_is;  // shapes; shape_is: the value of weight_shape
  const char* zeros;                                  // "", or the dtype of a [1, 2] zero point
  const char* message;
};
void PrintTo(const BadParts& b, std::ostream* out) { *out << b.name; }
class BadPacked : public ::testing::TestWithParam<BadParts> {};

// Against a [4, 64] matrix in groups of 32, symmetric unless there are zero points.
TEST_P(BadPacked, IsAnErrorThatNamesTheTensor) {
  const auto& p = GetParam();
  const auto fill = [](const std::vector<std::int64_t>& shape, std::size_t bytes) {
    for (const auto d : shape) bytes *= static_cast<std::size_t>(d);
    return std::string(bytes, '\0');
  };
  SafetensorsFile f;
  f.add("m.weight_packed", "I32", p.packed, fill(p.packed, 4));
  if (!p.scale.empty()) f.add("m.weight_scale", "F16", p.scale, fill(p.scale, 2));
  if (!p.shape_is.empty())
    f.add("m.weight_shape", "I64", {static_cast<std::int64_t>(p.shape_is.size())}, raw(p.shape_is));
  if (*p.zeros)
    f.add("m.weight_zero_point", p.zeros, {1, 2}, fill({1, 2}, *p.zeros == 'I' ? 4 : 2));
  const Files files = {{"config.json", config(quantization(int4(32, !*p.zeros)))},
                       {"model.safetensors", f.build()}};
  EXPECT_THAT(
      error_of([&] { open_hf(test::directory(files)); }),
      AllOf(HasSubstr("dir/model.safetensors"), HasSubstr("m.weight"), HasSubstr(p.message)));
}

INSTANTIATE_TEST_SUITE_P(
    , BadPacked,
    ::testing::Values(
        BadParts{"NoScale", {4, 8}, {}, {4, 64}, "", "weight_scale is missing"},
        BadParts{"NoShape", {4, 8}, {4, 2}, {}, "", "weight_shape is missing"},
        BadParts{"LongShape", {4, 8}, {4, 2}, {1, 4, 64}, "", "expected I64 [2]"},
        BadParts{"OtherRows", {4, 8}, {4, 2}, {5, 64}, "", "expected I32 [5, 8], got I32 [4, 8]"},
        BadParts{"OtherColumns", {4, 8}, {4, 2}, {4, 72}, "", "expected I32 [4, 9]"},
        BadParts{"OddColumns", {4, 8}, {4, 2}, {4, 63}, "", "not possible"},
        BadParts{"Negative", {4, 8}, {4, 2}, {-4, 64}, "", "not possible"},
        BadParts{"Huge", {4, 8}, {4, 2}, {INT64_MAX, INT64_MAX - 7}, "", "expected I32"},
        BadParts{"ScaleRows", {4, 8}, {3, 2}, {4, 64}, "", "expected F16, BF16 or F32 [4, 2]"},
        BadParts{"Group16", {4, 8}, {4, 4}, {4, 64}, "", "fit no group"},
        BadParts{"Group64", {4, 8}, {4, 1}, {4, 64}, "", "fit no group"},
        BadParts{"NoGroups", {4, 8}, {4, 0}, {4, 64}, "", "fit no group"},
        BadParts{"FlatScale", {4, 8}, {8}, {4, 64}, "", "fit no group"},
        BadParts{"ZeroType", {4, 8}, {4, 2}, {4, 64}, "F16", "expected I32 or I8 [1, 2], got F16"},
        BadParts{"ZeroRows", {12, 8}, {12, 2}, {12, 64}, "I32", "expected I32 or I8 [2, 2]"}),
    [](const auto& param) { return std::string(param.param.name); });

TEST(Packed, PartsThatContradictEachOtherAreRefused) {
  const Matrix m(4, 64, 32, true);
  const auto error = [](const Files& files) {
    return error_of([&] { open_hf(test::directory(files)); });
  };
  Files files = m.files();
  files["config.json"] = config("null");
  EXPECT_THAT(error(files), HasSubstr("no quantization_config"));
  files = m.files("F16", "I32");
  EXPECT_THAT(error(files), HasSubstr("with zero points, fit no group"));
  const auto with = [&](const std::string& name) {
    SafetensorsFile f;
    f.add("m.weight_packed", "I32", {4, 8}, m.packed());
    f.add(name, "I32", {64}, std::string(256, '\0'));
    return Files{{"config.json", config(quantization(int4(32, true)))},
                 {"model.safetensors", f.build()}};
  };
  EXPECT_THAT(error(with("m.weight_g_idx")), HasSubstr("columns reordered by activation"));
  EXPECT_THAT(error(with("m.weight")), HasSubstr("both packed and plain"));
}

struct BadScheme {
  const char* name;
  std::string quantization_config;
  const char* message;
};
void PrintTo(const BadScheme& b, std::ostream* out) { *out << b.name; }
class UnsupportedScheme : public ::testing::TestWithParam<BadScheme> {};

TEST_P(UnsupportedScheme, IsRefusedByName) {
  const Files files = {{"config.json", config(GetParam().quantization_config)}};
  EXPECT_THAT(error_of([&] { open_hf(test::directory(files)); }),
              AllOf(HasSubstr("dir/config.json"), HasSubstr(GetParam().message)));
}

std::string replaced(std::string s, const std::string& from, const std::string& to) {
  s.replace(s.find(from), from.size(), to);
  return s;
}
const std::string kGood = quantization(int4(128, true));

INSTANTIATE_TEST_SUITE_P(
    , UnsupportedScheme,
    ::testing::Values(
        BadScheme{"Awq", R"({"quant_method":"awq","bits":4})", "quantized with \"awq\""},
        BadScheme{"Bits", replaced(kGood, ":4", ":8"), "8-bit \"int\" weights"},
        BadScheme{"Float", replaced(kGood, "\"int\"", "\"float\""), "4-bit \"float\" weights"},
        BadScheme{"Channel", replaced(kGood, "\"group\"", "\"channel\""), "strategy \"channel\""},
        BadScheme{"Group", replaced(kGood, "128", "256"), "group_size 256"},
        BadScheme{"NoGroup", replaced(kGood, "128", "null"), "\"group_size\" is missing"},
        BadScheme{"Order", quantization(int4(128, true, R"(,"actorder":"group")")), "actorder"},
        BadScheme{"Format", replaced(kGood, "pack-", "marlin-"), "format \"marlin-quantized\""},
        BadScheme{"GroupFormat", replaced(kGood, "\"targets\"", "\"format\":\"x\",\"targets\""),
                  "format \"x\""},
        BadScheme{"Activations",
                  replaced(kGood, "\"targets\"", "\"input_activations\":{},\"targets\""),
                  "\"input_activations\" is set"},
        BadScheme{"NoWeights", replaced(kGood, "\"weights\"", "\"other\""),
                  "\"weights\" is missing"},
        BadScheme{"KvCache", quantization(int4(128, true), R"(,"kv_cache_scheme":{"num_bits":8})"),
                  "\"kv_cache_scheme\""},
        BadScheme{"Transform", quantization(int4(128, true), R"(,"transform_config":{"a":1})"),
                  "\"transform_config\""},
        BadScheme{"Sparse", quantization(int4(128, true), R"(,"sparsity_config":{"format":"x"})"),
                  "\"sparsity_config\""},
        BadScheme{"NoGroups", replaced(kGood, "config_groups", "other"), "\"config_groups\""},
        BadScheme{"Dynamic", quantization(int4(128, true, R"(,"dynamic":true)")), "dynamic"}),
    [](const auto& param) { return std::string(param.param.name); });

TEST(PackScheme, AcceptsWhatOnlyDescribesTheCalibration) {
  for (const std::string& q :
       {kGood, quantization(int4(128, true, R"(,"actorder":"weight","observer":"mse")")),
        quantization(int4(128, true, R"(,"actorder":null,"dynamic":false)"),
                     R"(,"ignore":["lm_head"],"sparsity_config":{},"transform_config":{})"),
        quantization(int4(128, true), R"(,"sparsity_config":{"format":"dense"})")}) {
    const auto scheme = parse_pack_scheme(parse_json_object(config(q), "c"), "c");
    ASSERT_EQ(scheme.groups.size(), 1u);
    EXPECT_EQ(scheme.groups[0].group, 128);
    EXPECT_TRUE(scheme.groups[0].symmetric);
  }
  EXPECT_TRUE(parse_pack_scheme(parse_json_object(config("null"), "c"), "c").groups.empty());
}

}  // namespace
}  // namespace nibble
