// Quantising what is INT4 already: nothing is rounded twice.
#include <map>

#include "checkpoint/safetensors.h"
#include "quantize_sample.h"

namespace nibble {
namespace {

using namespace quantize_sample;

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
