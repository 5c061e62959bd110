#include <algorithm>
#include <cmath>

#include "checkpoint/safetensors.h"
#include "int4/quantise.h"
#include "quantize_sample.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using namespace quantize_sample;
using test::error_of;
using test::TempDir;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

TEST(Quantize, WritesWhatTheQuantiserGives) {
  for (const int4::Method method : {int4::Method::Rtn, int4::Method::Search}) {
    const TempDir dir;
    write_model(dir, false);
    run(dir, {.group = 32, .method = method});
    const auto from = Checkpoint::open(dir.path() / "src"),
               to = Checkpoint::open(dir.path() / "out");
    EXPECT_EQ(to->format(), "compressed-tensors");
    auto matrices = linears();
    matrices.push_back({"lm_head.weight", kVocab, kHidden});
    for (const Matrix& m : matrices) {
      EXPECT_EQ(stored_type(*to, m.name), "int4 g32") << m.name;
      const auto x = values(*from, m);
      std::vector<std::uint8_t> codes(x.size());
      std::vector<std::uint16_t> scales(x.size() / 32);
      int4::quantise_rows(method, x.data(), m.n, m.k, 32, codes.data(), scales.data(), m.name);
      const WeightRows r = rows(*to, m);
      EXPECT_EQ(r.codes, codes) << m.name;
      for (std::size_t i = 0; i < scales.size(); ++i)
        ASSERT_EQ(r.scales[i], half_to_float(scales[i])) << m.name;
    }
    const Matrix embedding{"model.embed_tokens.weight", kVocab, kHidden};
    EXPECT_EQ(stored_type(*to, embedding.name), "BF16");
    EXPECT_EQ(values(*to, embedding), values(*from, embedding));
    for (const auto& [name, type] : {std::pair{kLayer + "input_layernorm.weight", "F32"},
                                     {kLayer + "post_attention_layernorm.weight", "BF16"},
                                     {std::string("model.norm.weight"), "F16"}}) {
      EXPECT_EQ(stored_type(*to, name), type);
      EXPECT_EQ(to->vector(name, kHidden), from->vector(name, kHidden));
    }
  }
}

TEST(Quantize, TakesTheOtherFilesAlong) {
  const TempDir dir;
  write_model(dir, true);
  run(dir);
  const Json c = config_of(dir.path() / "out");
  EXPECT_EQ(c["my_key"], Json({1, 2}));
  const Json& q = c["quantization_config"];
  EXPECT_EQ(q["quant_method"], "compressed-tensors");
  EXPECT_EQ(q["format"], "pack-quantized");
  EXPECT_EQ(q["ignore"], Json::array({"lm_head"}));
  const Json& g = q["config_groups"]["group_0"];
  EXPECT_EQ(g["targets"], Json::array({"Linear"}));
  EXPECT_EQ(g["weights"]["num_bits"], 4);
  EXPECT_EQ(g["weights"]["group_size"], 32);
  EXPECT_EQ(g["weights"]["symmetric"], true);
  const auto to = Checkpoint::open(dir.path() / "out");
  EXPECT_THAT(to->generation().eos, ElementsAre(3));
  EXPECT_EQ(to->chat_template(), "{{ messages }}");
  EXPECT_FALSE(to->has("lm_head.weight"));
}

TEST(Quantize, ReportsTheErrors) {
  const TempDir dir;
  write_model(dir, true);
  const QuantizeReport rtn = run(dir, {.group = 32, .method = int4::Method::Rtn}, "rtn");
  const QuantizeReport search = run(dir);
  const auto from = Checkpoint::open(dir.path() / "src"), to = Checkpoint::open(dir.path() / "rtn");
  double squares = 0, of = 0;
  for (const Matrix& m : linears()) {
    const auto x = values(*from, m), y = values(*to, m);
    double own = 0, own_of = 0, largest = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double e = static_cast<double>(y[i]) - x[i];
      own += e * e;
      own_of += static_cast<double>(x[i]) * x[i];
      largest = std::max(largest, std::fabs(e));
    }
    squares += own;
    of += own_of;
    const auto reported = std::find_if(rtn.matrices.begin(), rtn.matrices.end(),
                                       [&](const auto& q) { return q.name == m.name; });
    ASSERT_NE(reported, rtn.matrices.end()) << m.name;
    EXPECT_NEAR(reported->relative_rms, std::sqrt(own / own_of), 1e-9) << m.name;
    EXPECT_NEAR(reported->max_error, largest, 1e-9) << m.name;
    EXPECT_EQ(reported->from, "BF16");
    EXPECT_EQ(reported->to, "int4 g32");
  }
  EXPECT_NEAR(rtn.relative_rms, std::sqrt(squares / of), 1e-9);
  EXPECT_LT(search.relative_rms, rtn.relative_rms);
  EXPECT_EQ(rtn.matrices.size(), 8u);
  // 16 bits an element become 4.5 and a shape of 16 bytes; all else, the embedding too, stays.
  std::int64_t saved = 0;
  for (const Matrix& m : linears()) saved += m.n * m.k * 23 / 16 - 16;
  EXPECT_EQ(rtn.bytes_from - rtn.bytes_to, static_cast<std::uint64_t>(saved));
  std::uint64_t data = 0;
  for (const TensorInfo& t : to->tensors()) data += t.bytes;
  EXPECT_EQ(rtn.bytes_to, data);
}

TEST(Quantize, AnyNumberOfThreadsAndShardsGivesTheSameWeights) {
  const TempDir dir;
  write_model(dir, false);
  run(dir, {.group = 32, .threads = 1}, "one");
  run(dir, {.group = 32, .threads = 3}, "three");
  EXPECT_EQ(read_file(dir.path() / "one/model.safetensors"),
            read_file(dir.path() / "three/model.safetensors"));
  run(dir, {.group = 32, .shard_bytes = 400'000}, "shards");
  EXPECT_TRUE(fs::exists(dir.path() / "shards/model.safetensors.index.json"));
  const auto one = Checkpoint::open(dir.path() / "one"),
             shards = Checkpoint::open(dir.path() / "shards");
  for (const Matrix& m : linears()) EXPECT_EQ(values(*one, m), values(*shards, m)) << m.name;
}

TEST(Quantize, AGroupThatDoesNotDivideKIsRefusedBeforeAnythingIsWritten) {
  const TempDir dir;
  write_model(dir, true);
  const auto start = fs::last_write_time(dir.path());
  const std::string e = error_of([&] { run(dir, {.group = 64}); });
  EXPECT_THAT(
      e, HasSubstr("mlp.down_proj.weight\": K = 96 is no multiple of the group 64; groups that "
                   "fit: 32"));
  EXPECT_EQ(fs::last_write_time(dir.path()), start);
  expect_no_trace(dir);
  run(dir, {.group = 64, .keep = "down_proj"});
}

TEST(Quantize, KeepLeavesMatricesAsTheyAre) {
  const TempDir dir;
  write_model(dir, false);
  run(dir, {.group = 32, .keep = R"(layers\.0\.self_attn\.[qk]|^lm_head)"});
  const auto from = Checkpoint::open(dir.path() / "src"), to = Checkpoint::open(dir.path() / "out");
  for (const Matrix& m : linears()) {
    const bool kept =
        m.name.find("q_proj") != std::string::npos || m.name.find("k_proj") != std::string::npos;
    EXPECT_EQ(stored_type(*to, m.name), kept ? "BF16" : "int4 g32");
    if (kept) {
      EXPECT_EQ(values(*to, m), values(*from, m));
    }
  }
  EXPECT_THAT(config_of(dir.path() / "out")["quantization_config"]["ignore"]
                  .get<std::vector<std::string>>(),
              UnorderedElementsAre("model.layers.0.self_attn.q_proj",
                                   "model.layers.0.self_attn.k_proj", "lm_head"));
}

TEST(Quantize, EmbeddingInInt4) {
  const TempDir dir;
  write_model(dir, true);
  run(dir, {.group = 32, .int4_embedding = true});
  const auto to = Checkpoint::open(dir.path() / "out");
  EXPECT_EQ(stored_type(*to, "model.embed_tokens.weight"), "int4 g32");
  EXPECT_EQ(to->weight("model.embed_tokens.weight", kVocab, kHidden)->format().type,
            WeightType::Int4);
  const Json q = config_of(dir.path() / "out")["quantization_config"];
  EXPECT_EQ(q["config_groups"]["group_0"]["targets"], Json::array({"Linear", "Embedding"}));
  EXPECT_EQ(q["ignore"], Json::array({"lm_head"}));  // it has no tensor of its own
}

TEST(Quantize, AHeadStoredThoughItIsTiedIsLeftOut) {
  const TempDir dir;
  write_model(dir, true, {}, false, true);
  run(dir);
  const MappedFile file(dir.path() / "out/model.safetensors");
  for (const StoredTensor& t : parse_safetensors(file.bytes(), "f"))
    EXPECT_FALSE(t.name.starts_with("lm_head")) << t.name;
}

TEST(Quantize, PlainValuesTakeTheTypeThatLosesLeast) {
  const std::string name = "model.embed_tokens.weight";
  const auto converted = [&](float x) {
    const TempDir dir;
    write_model(
        dir, true,
        [&](const std::string& n, std::vector<float>& v) {
          if (n == name) std::fill(v.begin(), v.end(), x);
        },
        true);
    const QuantizeReport r = run(dir);
    const auto to = Checkpoint::open(dir.path() / "out");
    return std::tuple{stored_type(*to, name), values(*to, {name, kVocab, kHidden})[7],
                      r.matrices[0].max_error};
  };
  EXPECT_EQ(converted(0x1.02p-30f), (std::tuple{"BF16", 0x1.02p-30f, 0.0}));
  EXPECT_EQ(converted(0x1.004p0f), (std::tuple{"F16", 0x1.004p0f, 0.0}));
  EXPECT_EQ(converted(0x1.0010p0f), (std::tuple{"F16", 1.0f, 0x1p-12}));
  EXPECT_EQ(converted(100001.0f), (std::tuple{"BF16", 99840.0f, 161.0}));
}

TEST(Quantize, DamagedWeightsNameTheTensorAndLeaveNothing) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const TempDir dir;
    write_model(dir, true, [&](const std::string& n, std::vector<float>& v) {
      if (n.find("up_proj") != std::string::npos) v[1000] = bad;
    });
    EXPECT_THAT(error_of([&] { run(dir); }), HasSubstr("model.layers.0.mlp.up_proj.weight"));
    expect_no_trace(dir);
  }
}

TEST(Quantize, AScaleTooLargeForFp16NamesTheTensor) {
  const TempDir dir;
  write_model(dir, true, [&](const std::string& n, std::vector<float>& v) {
    if (n.find("up_proj") != std::string::npos) v[64 * 5 + 40] = 1e6f;
  });
  EXPECT_THAT(error_of([&] { run(dir); }),
              HasSubstr("model.layers.0.mlp.up_proj.weight: row 5, columns 32..63"));
  expect_no_trace(dir);
}

TEST(Quantize, CancellingLeavesNothing) {
  const TempDir dir;
  write_model(dir, true);
  int calls = 0;
  EXPECT_EQ(error_of([&] {
              run(dir, {.group = 32, .progress = [&](double f, std::string_view) {
                          EXPECT_GT(f, 0);
                          EXPECT_LE(f, 1);
                          if (++calls == 3) fail("stop");
                        }});
            }),
            "stop");
  EXPECT_EQ(calls, 3);
  expect_no_trace(dir);
}

TEST(Quantize, NeverTouchesWhatExists) {
  const TempDir dir;
  write_model(dir, true);
  dir.write("file", "precious");
  fs::create_directory(dir.path() / "empty");
  fs::create_symlink(dir.path() / "nowhere", dir.path() / "link");
  for (const std::string target : {"file", "empty", "empty/", "link", "src", "."}) {
    EXPECT_THROW(run(dir, {.group = 32}, target), UsageError) << target;
    EXPECT_THAT(error_of([&] { run(dir, {.group = 32}, target); }), HasSubstr("it exists"))
        << target;
  }
  EXPECT_EQ(read_file(dir.path() / "file"), "precious");
  EXPECT_THAT(error_of([&] { run(dir, {.group = 32}, "none/out"); }),
              HasSubstr("no such directory"));
  run(dir, {.group = 32}, "out/");
  EXPECT_TRUE(fs::exists(dir.path() / "out/model.safetensors"));
}

TEST(Quantize, BadOptionsAreUsageErrors) {
  const TempDir dir;
  write_model(dir, true);
  const auto usage = [&](const QuantizeOptions& o) {
    EXPECT_THROW(run(dir, o), UsageError);
    const std::string e = error_of([&] { run(dir, o); });
    expect_no_trace(dir);
    return e;
  };
  EXPECT_THAT(usage({.group = 48}), HasSubstr("128, 64 and 32 are"));
  EXPECT_THAT(usage({.group = 32, .keep = "a("}), HasSubstr("no regular expression"));
  EXPECT_THAT(usage({.group = 32, .keep = "donw_proj"}),
              HasSubstr("no matrix has a name that matches"));
  EXPECT_THAT(usage({.group = 32, .shard_bytes = 0}), HasSubstr("shard size"));
}

}  // namespace
}  // namespace nibble
