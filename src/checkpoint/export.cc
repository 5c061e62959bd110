#include "checkpoint/export.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <optional>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/names.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

// What else of a Hugging Face directory goes along, where it is there.
constexpr std::string_view kCompanions[] = {"generation_config.json",
                                            "tokenizer.json",
                                            "tokenizer_config.json",
                                            "special_tokens_map.json",
                                            "added_tokens.json",
                                            "vocab.json",
                                            "merges.txt",
                                            "tokenizer.model",
                                            "chat_template.jinja",
                                            "chat_template.json",
                                            "LICENSE",
                                            "LICENSE.txt",
                                            "NOTICE"};

std::string dump(const OrderedJson& j) { return j.dump(2) + "\n"; }

OrderedJson quantization_config(const QuantizePlan& plan, int group) {
  OrderedJson targets = OrderedJson::array({"Linear"});
  if (plan.int4_embedding) targets.push_back("Embedding");
  const OrderedJson weights = {{"num_bits", 4},        {"type", "int"},
                               {"symmetric", true},    {"strategy", "group"},
                               {"group_size", group},  {"dynamic", false},
                               {"actorder", nullptr},  {"block_structure", nullptr},
                               {"observer", "minmax"}, {"observer_kwargs", OrderedJson::object()}};
  return {{"quant_method", "compressed-tensors"},
          {"format", "pack-quantized"},
          {"quantization_status", "compressed"},
          {"config_groups",
           {{"group_0",
             {{"targets", targets},
              {"weights", weights},
              {"input_activations", nullptr},
              {"output_activations", nullptr}}}}},
          {"ignore", plan.ignore},
          {"kv_cache_scheme", nullptr}};
}

// A number that was fp32, spelled as shortly as fp32 allows: 1e-05 and not 9.999999747378752e-06.
double tidy(double x) {
  const auto f = static_cast<float>(x);
  return static_cast<double>(f) == x ? std::stod(fmt::format("{}", f)) : x;
}

// The "llama3" parameters whose factors these are. GGUF keeps the factors alone; all published
// models use the same three other numbers.
OrderedJson llama3_scaling(const ModelConfig& m) {
  constexpr double kLow = 1, kHigh = 4, kOriginal = 8192;
  const double factor = std::round(m.rope_factors.back());
  for (std::size_t i = 0; i < m.rope_factors.size(); ++i) {
    const double wavelength =
        2 * std::numbers::pi *
        std::pow(m.rope_theta, 2.0 * static_cast<double>(i) / static_cast<double>(m.head_dim));
    const double smooth = std::clamp((kOriginal / wavelength - kLow) / (kHigh - kLow), 0.0, 1.0);
    const double expected = 1 / ((1 - smooth) / factor + smooth);
    require(std::fabs(m.rope_factors[i] - expected) <= 1e-4 * expected,
            "rope_freqs.weight holds RoPE factors that config.json cannot express; quantize the "
            "model's Hugging Face checkpoint instead");
  }
  return {{"rope_type", "llama3"},
          {"factor", factor},
          {"low_freq_factor", kLow},
          {"high_freq_factor", kHigh},
          {"original_max_position_embeddings", static_cast<std::int64_t>(kOriginal)}};
}

OrderedJson generation_json(const GenerationConfig& g) {
  OrderedJson j = OrderedJson::object();
  if (g.bos >= 0) j["bos_token_id"] = g.bos;
  if (g.eos.size() == 1)
    j["eos_token_id"] = g.eos[0];
  else if (!g.eos.empty())
    j["eos_token_id"] = g.eos;
  if (g.do_sample) j["do_sample"] = true;
  const auto number = [&](const char* key, const std::optional<double>& v) {
    if (v) j[key] = tidy(*v);
  };
  number("temperature", g.temperature);
  number("top_p", g.top_p);
  number("min_p", g.min_p);
  number("repetition_penalty", g.repetition_penalty);
  if (g.top_k) j["top_k"] = *g.top_k;
  return j;
}

std::string tokenizer_config_json(const TokenizerSpec& spec, const GenerationConfig& g) {
  OrderedJson j;
  j["tokenizer_class"] = "PreTrainedTokenizerFast";
  const auto token = [&](const char* key, std::int32_t id) {
    for (const AddedToken& t : spec.added)
      if (t.id == id) j[key] = t.text;
  };
  if (g.bos >= 0) token("bos_token", g.bos);
  if (!g.eos.empty()) token("eos_token", g.eos[0]);
  j["clean_up_tokenization_spaces"] = false;
  return dump(j);
}

std::vector<ExportedFile> from_directory(const fs::path& source, const QuantizePlan& plan,
                                         const QuantizeOptions& options) {
  OrderedJson config = OrderedJson::parse(read_file(source / "config.json"));
  config.erase("compression_config");
  config["quantization_config"] = quantization_config(plan, options.group);
  std::vector<ExportedFile> files = {{"config.json", dump(config)}};
  for (const std::string_view name : kCompanions) {
    std::error_code error;
    if (fs::is_regular_file(source / name, error))
      files.push_back({std::string(name), read_file(source / name)});
  }
  return files;
}

std::vector<ExportedFile> from_metadata(const Checkpoint& checkpoint, const QuantizePlan& plan,
                                        const QuantizeOptions& options) {
  DType plain = DType::F16;
  for (const QuantizeStep& s : plan.steps)
    if (s.info.name == "model.embed_tokens.weight" && !s.int4()) plain = s.dtype;
  const GenerationConfig& generation = checkpoint.generation();
  OrderedJson config = OrderedJson::parse(config_json(checkpoint.config(), generation, plain));
  config["quantization_config"] = quantization_config(plan, options.group);
  std::vector<ExportedFile> files = {{"config.json", dump(config)},
                                     {"generation_config.json", dump(generation_json(generation))}};
  if (const auto spec = checkpoint.tokenizer()) {
    files.push_back({"tokenizer.json", tokenizer_json(*spec)});
    files.push_back({"tokenizer_config.json", tokenizer_config_json(*spec, generation)});
  }
  if (const auto text = checkpoint.chat_template()) files.push_back({"chat_template.jinja", *text});
  return files;
}

}  // namespace

// The text decoder alone, as transformers saves one.
static OrderedJson hybrid_json(const ModelConfig& m) {
  OrderedJson j, types = OrderedJson::array();
  for (const bool attends : m.attends)
    types.push_back(attends ? "full_attention" : "linear_attention");
  const bool moe = m.moe.experts > 0;
  j["architectures"] = OrderedJson::array({moe ? "Qwen3_5MoeForCausalLM" : "Qwen3_5ForCausalLM"});
  j["model_type"] = m.architecture + "_text";
  j["layer_types"] = types;
  j["linear_num_key_heads"] = m.delta.key_heads;
  j["linear_num_value_heads"] = m.delta.value_heads;
  j["linear_key_head_dim"] = m.delta.key_dim;
  j["linear_value_head_dim"] = m.delta.value_dim;
  j["linear_conv_kernel_dim"] = m.delta.conv_kernel;
  const double rotated = static_cast<double>(m.rotary_dims()) / static_cast<double>(m.head_dim);
  j["partial_rotary_factor"] = rotated;
  j["rope_parameters"] = {{"rope_type", "default"},
                          {"rope_theta", tidy(m.rope_theta)},
                          {"partial_rotary_factor", rotated}};
  if (!moe) return j;
  j["num_experts"] = m.moe.experts;
  j["num_experts_per_tok"] = m.moe.top_k;
  j["moe_intermediate_size"] = m.moe.intermediate;
  j["shared_expert_intermediate_size"] = m.moe.shared_intermediate;
  return j;
}

std::string config_json(const ModelConfig& m, const GenerationConfig& generation, DType plain) {
  const bool llama = m.architecture == "llama", qwen2 = m.architecture == "qwen2";
  // What the classes' own switches can say: llama and qwen3 have one for all four biases.
  require(qwen2 ? m.qkv_bias && !m.o_bias : m.qkv_bias == m.o_bias,
          "biases on only some attention projections of a {} model cannot be expressed in "
          "config.json; quantize the model's Hugging Face checkpoint instead",
          m.architecture);
  require(m.qk_norm == (m.architecture == "qwen3" || m.hybrid()),
          "a {} model {} q/k norms cannot be expressed in config.json", m.architecture,
          m.qk_norm ? "with" : "without");
  OrderedJson j = m.hybrid() ? hybrid_json(m) : OrderedJson();
  if (!m.hybrid()) {
    j["architectures"] = OrderedJson::array({llama   ? "LlamaForCausalLM"
                                             : qwen2 ? "Qwen2ForCausalLM"
                                                     : "Qwen3ForCausalLM"});
    j["model_type"] = m.architecture;
  }
  j["hidden_size"] = m.hidden;
  if (m.intermediate > 0) j["intermediate_size"] = m.intermediate;
  j["num_hidden_layers"] = m.layers;
  j["num_attention_heads"] = m.heads;
  j["num_key_value_heads"] = m.kv_heads;
  j["head_dim"] = m.head_dim;
  j["vocab_size"] = m.vocab;
  j["max_position_embeddings"] = m.max_position;
  j["hidden_act"] = "silu";
  j["rms_norm_eps"] = tidy(m.rms_eps);
  if (!m.hybrid()) j["rope_theta"] = tidy(m.rope_theta);
  if (!m.rope_factors.empty()) j["rope_scaling"] = llama3_scaling(m);
  if (!qwen2) j["attention_bias"] = m.qkv_bias;
  j["tie_word_embeddings"] = m.tied_embedding;
  if (generation.bos >= 0) j["bos_token_id"] = generation.bos;
  if (!generation.eos.empty()) j["eos_token_id"] = generation.eos[0];
  j["torch_dtype"] = plain == DType::BF16 ? "bfloat16" : "float16";
  return dump(j);
}

std::vector<ExportedFile> export_files(const Checkpoint& checkpoint, const fs::path& source,
                                       const QuantizePlan& plan, const QuantizeOptions& options) {
  std::error_code error;
  return fs::is_directory(source, error) ? from_directory(source, plan, options)
                                         : from_metadata(checkpoint, plan, options);
}

std::string tokenizer_json(const TokenizerSpec& spec) {
  using nlohmann::json;  // a hundred thousand keys: ordered_json would search them one by one
  require(!spec.add_prefix_space,
          "a tokenizer that puts a blank before the text is not supported by "
          "quantize; use the model's Hugging Face checkpoint");
  json vocab = json::object(), added = json::array();
  const auto define = [&](const std::string& token, std::size_t id) {
    const auto [at, fresh] = vocab.emplace(token, id);
    require(fresh, "token {} has two ids, {} and {}; tokenizer.json cannot express that",
            quote(token), at->get<std::size_t>(), id);
  };
  for (std::size_t i = 0; i < spec.vocab.size(); ++i)
    if (!spec.vocab[i].empty()) define(spec.vocab[i], i);
  for (const AddedToken& t : spec.added) {
    const auto id = static_cast<std::size_t>(t.id);
    // `tokenizers` numbers added tokens by itself unless the vocabulary lists them too.
    if (id >= spec.vocab.size() || spec.vocab[id].empty()) define(t.text, id);
    added.push_back({{"id", t.id},
                     {"content", t.text},
                     {"single_word", t.single_word},
                     {"lstrip", t.lstrip},
                     {"rstrip", t.rstrip},
                     {"normalized", t.normalized},
                     {"special", t.special}});
  }
  json merges = json::array();
  for (const auto& [left, right] : spec.merges) merges.push_back(left + " " + right);

  json steps = json::array();
  for (const TokenizerSpec::Split& s : spec.splits)
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", s.pattern}}},
                     {"behavior", s.isolated ? "Isolated" : "Removed"},
                     {"invert", !s.isolated}});
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  steps.push_back(byte_level);

  json post = byte_level;
  if (!spec.prefix_ids.empty() || !spec.suffix_ids.empty()) {
    json single = json::array(), specials = json::object();
    const auto surround = [&](const std::vector<std::int32_t>& ids) {
      for (const std::int32_t id : ids) {
        const std::string name = fmt::format("<{}>", id);
        single.push_back({{"SpecialToken", {{"id", name}, {"type_id", 0}}}});
        specials[name] = {
            {"id", name}, {"ids", json::array({id})}, {"tokens", json::array({name})}};
      }
    };
    surround(spec.prefix_ids);
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    surround(spec.suffix_ids);
    post = {{"type", "TemplateProcessing"},
            {"single", single},
            {"pair", json::array({{{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                                  {{"Sequence", {{"id", "B"}, {"type_id", 1}}}}})},
            {"special_tokens", specials}};
  }
  json root;
  root["version"] = "1.0";
  root["truncation"] = nullptr;
  root["padding"] = nullptr;
  root["added_tokens"] = std::move(added);
  root["normalizer"] = spec.nfc ? json{{"type", "NFC"}} : json(nullptr);
  root["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
  root["post_processor"] = std::move(post);
  root["decoder"] = byte_level;
  root["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"ignore_merges", spec.ignore_merges},
                   {"vocab", std::move(vocab)},
                   {"merges", std::move(merges)}};
  return root.dump(1) + "\n";
}

}  // namespace nibble
