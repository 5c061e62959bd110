#include "checkpoint/quantize.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "builders.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"
#include "int4/quantise.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::SafetensorsFile;
using test::TempDir;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

constexpr std::int64_t kHidden = 64, kInner = 96;
constexpr std::int64_t kVocab = 4500;  // more rows than are converted at once
const std::string kLayer = "model.layers.0.";

std::vector<float> gaussian(unsigned seed, std::int64_t n) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.05f);
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& v : x) v = normal(random);
  return x;
}

struct Matrix {
  std::string name;
  std::int64_t n, k;
};

std::vector<Matrix> linears() {
  return {{kLayer + "self_attn.q_proj.weight", kHidden, kHidden},
          {kLayer + "self_attn.k_proj.weight", 32, kHidden},
          {kLayer + "self_attn.v_proj.weight", 32, kHidden},
          {kLayer + "self_attn.o_proj.weight", kHidden, kHidden},
          {kLayer + "mlp.gate_proj.weight", kInner, kHidden},
          {kLayer + "mlp.up_proj.weight", kInner, kHidden},
          {kLayer + "mlp.down_proj.weight", kHidden, kInner}};
}

// A one-layer Llama as a Hugging Face directory. `damage` may change a tensor's values.
void write_model(const TempDir& dir, bool tied,
                 const std::function<void(const std::string&, std::vector<float>&)>& damage = {},
                 bool embedding_f32 = false, bool store_head = false) {
  fs::create_directory(dir.path() / "src");
  dir.write("src/config.json",
            fmt::format(
                R"({{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":64,
          "intermediate_size":96,"num_hidden_layers":1,"num_attention_heads":2,
          "num_key_value_heads":1,"vocab_size":4500,"max_position_embeddings":128,
          "rms_norm_eps":1e-05,"tie_word_embeddings":{},"torch_dtype":"bfloat16","my_key":[1,2]}})",
                tied));
  dir.write("src/generation_config.json", R"({"eos_token_id":3})");
  dir.write("src/tokenizer_config.json", R"({"chat_template":"{{ messages }}"})");
  SafetensorsFile file;
  unsigned seed = 0;
  const auto matrix = [&](const Matrix& m, bool f32 = false) {
    auto x = gaussian(++seed, m.n * m.k);
    if (damage) damage(m.name, x);
    file.add(m.name, f32 ? "F32" : "BF16", {m.n, m.k}, f32 ? test::raw(x) : test::bfloats(x));
  };
  matrix({"model.embed_tokens.weight", kVocab, kHidden}, embedding_f32);
  for (const Matrix& m : linears()) matrix(m);
  if (!tied || store_head) matrix({"lm_head.weight", kVocab, kHidden});
  file.add(kLayer + "input_layernorm.weight", "F32", {kHidden}, test::raw(gaussian(91, kHidden)));
  file.add(kLayer + "post_attention_layernorm.weight", "BF16", {kHidden},
           test::bfloats(gaussian(92, kHidden)));
  file.add("model.norm.weight", "F16", {kHidden}, test::halves(gaussian(93, kHidden)));
  dir.write("src/model.safetensors", file.build());
}

QuantizeReport run(const TempDir& dir, const QuantizeOptions& o = {.group = 32},
                   const std::string& target = "out") {
  return quantize(dir.path() / "src", dir.path() / target, o);
}

std::vector<float> values(const Checkpoint& c, const Matrix& m) {
  return dequantise(*c.weight(m.name, m.n, m.k), 0, m.n);
}

WeightRows rows(const Checkpoint& c, const Matrix& m) {
  WeightRows r;
  c.weight(m.name, m.n, m.k)->read(0, m.n, r);
  return r;
}

std::string stored_type(const Checkpoint& c, const std::string& name) {
  for (const TensorInfo& t : c.tensors())
    if (t.name == name) return t.stored_type;
  return "";
}

Json config_of(const fs::path& dir) {
  return parse_json_object(read_file(dir / "config.json"), "config");
}

// Nothing but the source is left: no target, no temporary.
void expect_no_trace(const TempDir& dir) {
  for (const auto& e : fs::directory_iterator(dir.path())) EXPECT_EQ(e.path().filename(), "src");
}

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
  EXPECT_LT(rtn.bytes_to, rtn.bytes_from / 2);
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

// What is symmetric INT4 already is not rounded again.
TEST(Quantize, Int4PassesThroughBitForBit) {
  const TempDir dir;
  write_model(dir, false);
  const auto open = [&](const std::string& name) { return Checkpoint::open(dir.path() / name); };
  QuantizeOptions o{.group = 64, .method = int4::Method::Search, .keep = "down_proj"};
  run(dir, o, "g64");
  o.method = int4::Method::Rtn;  // whose codes for these values would be others
  const QuantizeReport again = quantize(dir.path() / "g64", dir.path() / "again", o);
  EXPECT_EQ(again.relative_rms, 0);
  EXPECT_EQ(read_file(dir.path() / "g64/model.safetensors"),
            read_file(dir.path() / "again/model.safetensors"));
  EXPECT_EQ(read_file(dir.path() / "g64/config.json"), read_file(dir.path() / "again/config.json"));
  // A smaller group: the same values, scales repeated.
  o.group = 32;
  quantize(dir.path() / "g64", dir.path() / "g32", o);
  for (const Matrix& m : linears())
    EXPECT_EQ(values(*open("g64"), m), values(*open("g32"), m)) << m.name;
}

TEST(Quantize, ScalesBeyondFp16StayFp32) {
  const TempDir dir;
  write_model(dir, true);
  run(dir, {.group = 32}, "int4");
  // The same model with one scale that fp16 cannot hold.
  const std::string name = kLayer + "mlp.up_proj.weight";
  SafetensorsFile file;
  const MappedFile old(dir.path() / "int4/model.safetensors");
  for (const StoredTensor& t : parse_safetensors(old.bytes(), "f")) {
    std::string data(reinterpret_cast<const char*>(t.data.data()), t.data.size());
    std::string type(dtype_name(t.dtype));
    if (t.name == name + "_scale") {
      data = test::raw(std::vector<float>(t.data.size() / 2, 0.1f));
      type = "F32";
    }
    file.add(t.name, type, t.shape, data);
  }
  dir.write("int4/model.safetensors", file.build());
  quantize(dir.path() / "int4", dir.path() / "out", {.group = 32});
  const auto from = Checkpoint::open(dir.path() / "int4"),
             to = Checkpoint::open(dir.path() / "out");
  EXPECT_EQ(values(*to, {name, kInner, kHidden}), values(*from, {name, kInner, kHidden}));
}

TEST(Quantize, Q4_0InAGgufPassesThroughBitForBit) {
  const TempDir dir;
  test::GgufFile g;
  g.string("general.architecture", "llama")
      .u32("llama.embedding_length", kHidden)
      .u32("llama.block_count", 1)
      .u32("llama.attention.head_count", 2)
      .u32("llama.attention.head_count_kv", 1)
      .u32("llama.feed_forward_length", kInner)
      .u32("llama.context_length", 128)
      .f32("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .f32("llama.rope.freq_base", 100000.0f);
  std::mt19937 random(5);
  const std::map<std::string, std::string> names = {
      {"attn_q", "self_attn.q_proj"}, {"attn_k", "self_attn.k_proj"},
      {"attn_v", "self_attn.v_proj"}, {"attn_output", "self_attn.o_proj"},
      {"ffn_gate", "mlp.gate_proj"},  {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"}};
  for (const auto& [gguf, hf] : names)
    for (const Matrix& m : linears()) {
      if (m.name.find(hf) == std::string::npos) continue;
      std::string data;
      for (std::int64_t b = 0; b < m.n * m.k / 32; ++b) {
        // Scales of both signs, and codes that no quantiser would choose for their values.
        test::put(data,
                  float_to_half(0.001f * static_cast<float>(static_cast<int>(random() % 64) - 32)));
        for (int i = 0; i < 16; ++i) test::put(data, static_cast<std::uint8_t>(random()));
      }
      g.tensor("blk.0." + gguf + ".weight", 2, {m.n, m.k}, data);
    }
  g.f32_tensor("token_embd.weight", {kVocab, kHidden}, gaussian(1, kVocab * kHidden));
  for (const char* norm : {"blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"})
    g.f32_tensor(norm, {kHidden}, gaussian(2, kHidden));
  dir.write("m.gguf", g.build());

  const QuantizeReport r = quantize(dir.path() / "m.gguf", dir.path() / "out", {.group = 32});
  EXPECT_EQ(r.relative_rms, 0);
  const auto from = Checkpoint::open(dir.path() / "m.gguf"),
             to = Checkpoint::open(dir.path() / "out");
  for (const Matrix& m : linears()) {
    const WeightRows a = rows(*from, m), b = rows(*to, m);
    EXPECT_EQ(a.codes, b.codes) << m.name;
    EXPECT_EQ(a.scales, b.scales) << m.name;
  }
  EXPECT_EQ(to->config().rope_theta, 100000);
  EXPECT_TRUE(to->config().tied_embedding);
  const auto norm = gaussian(2, kHidden);
  EXPECT_EQ(to->vector("model.norm.weight", kHidden), norm);
  EXPECT_EQ(stored_type(*to, "model.norm.weight"), "F32");
}

}  // namespace
}  // namespace nibble
