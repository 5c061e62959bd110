// A Hugging Face directory: config.json, safetensors (one file or shards), tokenizer files.
#include <algorithm>
#include <map>
#include <utility>

#include "base/error.h"
#include "checkpoint/hf_tensors.h"
#include "checkpoint/hybrid_config.h"
#include "checkpoint/names.h"
#include "checkpoint/packed.h"
#include "checkpoint/reader.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/values.h"

namespace nibble {
namespace {

constexpr std::string_view kIndex = "model.safetensors.index.json", kSingle = "model.safetensors";

// The stored name -> the canonical one: "model." whatever wrapper saved the decoder.
std::string canonical_name(std::string_view name) {
  constexpr std::pair<std::string_view, std::string_view> prefixes[] = {
      {"model.language_model.", "model."},
      {"language_model.model.", "model."},
      {"language_model.lm_head.", "lm_head."},
      {"language_model.", "model."},
      {"layers.", "model.layers."},
      {"embed_tokens.", "model.embed_tokens."},
      {"norm.", "model.norm."},
  };
  for (const auto& [from, to] : prefixes)
    if (name.starts_with(from)) return std::string(to) + std::string(name.substr(from.size()));
  return std::string(name);
}

std::optional<WeightType> plain_type(DType t) {
  switch (t) {
    case DType::F32:
      return WeightType::F32;
    case DType::F16:
      return WeightType::F16;
    case DType::BF16:
      return WeightType::BF16;
    default:
      return std::nullopt;
  }
}

// `n` stored values from element `first` of a plain tensor -> fp32; Error when one is not finite.
void read_plain(const Part& p, std::size_t first, std::size_t n, float* out) {
  const DType t = p.tensor.dtype;
  const std::byte* src = p.tensor.data.data() + first * dtype_size(t);
  if (t == DType::F32)
    std::memcpy(out, src, n * 4);
  else if (t == DType::F16)
    widen_f16(src, n, out);
  else
    widen_bf16(src, n, out);
  if (!all_finite(out, n))
    fail("{}: tensor {}: a value is not finite (NaN or Inf); the weights are damaged",
         p.file->name(), quote(p.tensor.name));
}

class PlainWeight : public WeightSource {
 public:
  PlainWeight(const std::string& name, const Part& part, WeightType type, std::int64_t n,
              std::int64_t k)
      : WeightSource(name, {type, n, k, 0, true}), part_(part) {}

  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override {
    out.codes.clear();
    out.scales.clear();
    out.offsets.clear();
    out.values.resize(static_cast<std::size_t>(count * format_.k));
    read_plain(part_, static_cast<std::size_t>(row * format_.k), out.values.size(),
               out.values.data());
  }

  void release(std::int64_t row, std::int64_t count) const override {
    const auto stride = static_cast<std::size_t>(format_.k) * dtype_size(part_.tensor.dtype);
    part_.file->release(part_.tensor.data.subspan(static_cast<std::size_t>(row) * stride,
                                                  static_cast<std::size_t>(count) * stride));
  }

 private:
  Part part_;
};

class HfCheckpoint : public Checkpoint {
 public:
  explicit HfCheckpoint(Directory directory) : dir_(std::move(directory)) {
    const std::string where = path("config.json");
    const auto text = dir_.text("config.json");
    require(text.has_value(), "{}: no such file", where);
    config_ = parse_config_json(*text, where);
    scheme_ = parse_pack_scheme(parse_json_object(*text, where), where);
    generation_ = parse_generation_json(dir_.text("generation_config.json").value_or(""), *text,
                                        path("generation_config.json"));
    load_files();
    check_parts();
  }

  std::string format() const override {
    return scheme_.groups.empty() ? "safetensors" : "compressed-tensors";
  }
  const ModelConfig& config() const override { return config_; }
  const GenerationConfig& generation() const override { return generation_; }

  std::vector<TensorInfo> tensors() const override {
    std::vector<TensorInfo> list;
    for (const auto& [name, part] : parts_) {
      if (const std::string base = packed_base(name); !base.empty()) {
        const PackedShape s = check_packed(base, packed_parts(base), scheme_);
        std::uint64_t bytes = 0;
        const PackedParts p = packed_parts(base);
        for (const Part* q : {p.packed, p.scale, p.shape, p.zero})
          bytes += q == nullptr ? 0 : q->tensor.data.size();
        list.push_back({base,
                        fmt::format("int4 g{}{}", s.group, p.zero ? " zero-point" : ""),
                        {s.n, s.k},
                        bytes,
                        ""});
      } else if (!is_companion(name)) {
        list.push_back({name, std::string(dtype_name(part.tensor.dtype)), part.tensor.shape,
                        part.tensor.data.size(),
                        hidden(name) ? "unused: the embedding is tied" : ""});
      }
    }
    return list;
  }

  bool has(std::string_view name) const override {
    return !hidden(name) &&
           (find(name) != nullptr || find(std::string(name) + "_packed") != nullptr);
  }

  std::unique_ptr<WeightSource> weight(std::string_view name, std::int64_t n,
                                       std::int64_t k) const override {
    const std::string id(name);
    const auto expect = [&](std::int64_t got_n, std::int64_t got_k) {
      require(got_n == n && got_k == k,
              "{}: tensor {}: expected [{}, {}], as config.json says, got [{}, {}]", dir_.name,
              quote(name), n, k, got_n, got_k);
    };
    if (find(id + "_packed") != nullptr) {
      const PackedParts parts = packed_parts(id);
      const PackedShape s = check_packed(id, parts, scheme_);
      expect(s.n, s.k);
      return packed_weight(id, parts, s);
    }
    const Part& p = required(name);
    const auto& shape = p.tensor.shape;
    require(shape.size() == 2, "{}: tensor {}: expected a matrix, got {} dimensions",
            p.file->name(), quote(name), shape.size());
    expect(shape[0], shape[1]);
    const auto type = plain_type(p.tensor.dtype);
    require(type.has_value(), "{}: tensor {}: weights of dtype {} are not supported",
            p.file->name(), quote(name), dtype_name(p.tensor.dtype));
    return std::make_unique<PlainWeight>(id, p, *type, n, k);
  }

  std::vector<float> vector(std::string_view name, std::int64_t size) const override {
    const Part& p = required(name);
    const auto& shape = p.tensor.shape;
    const bool taps = shape.size() == 3 && shape[1] == 1;  // of a depthwise convolution
    require(taps ? shape[0] * shape[2] == size : shape == std::vector{size},
            "{}: tensor {}: expected [{}], got [{}]", p.file->name(), quote(name), size,
            fmt::join(shape, ", "));
    require(plain_type(p.tensor.dtype).has_value(),
            "{}: tensor {}: values of dtype {} are not supported", p.file->name(), quote(name),
            dtype_name(p.tensor.dtype));
    std::vector<float> v(static_cast<std::size_t>(size));
    read_plain(p, 0, v.size(), v.data());
    return v;
  }

  std::optional<TokenizerSpec> tokenizer() const override;
  std::optional<std::string> chat_template() const override;
  std::vector<std::string> notices() const override { return {}; }
  std::vector<SkippedTensors> skipped() const override { return skipped_; }

 private:
  std::string path(std::string_view file) const { return fmt::format("{}/{}", dir_.name, file); }

  // Adds the tensors of one file: all, or those `wanted` names (stored name -> found).
  void load_file(const std::shared_ptr<const Blob>& file, std::map<std::string, bool>* wanted);
  void add(const std::string& name, Part part);
  void skip(std::string_view what, const StoredTensor& t);
  void load_shards(const std::string& index);
  void load_files();
  void check_parts() const;

  const Part* find(std::string_view name) const {
    const auto it = parts_.find(name);
    return it == parts_.end() ? nullptr : &it->second;
  }
  const Part& required(std::string_view name) const {
    const Part* p = hidden(name) ? nullptr : find(name);
    require(p != nullptr,
            "{}: tensor {} is missing; the checkpoint is incomplete or of another "
            "architecture than its config.json says",
            dir_.name, quote(name));
    return *p;
  }
  // A tied checkpoint may still store the head; the embedding stands for it.
  bool hidden(std::string_view name) const {
    return config_.tied_embedding && name.starts_with("lm_head.");
  }
  // "X.weight_packed" -> "X.weight", else "".
  static std::string packed_base(std::string_view name) {
    return std::string(name.ends_with(".weight_packed") ? name.substr(0, name.size() - 7) : "");
  }
  // One of the parts that go with a packed tensor.
  bool is_companion(std::string_view name) const {
    for (const std::string_view suffix : {"_scale", "_shape", "_zero_point"})
      if (name.ends_with(suffix))
        return find(std::string(name.substr(0, name.size() - suffix.size())) + "_packed") !=
               nullptr;
    return false;
  }
  PackedParts packed_parts(const std::string& base) const {
    return {find(base + "_packed"), find(base + "_scale"), find(base + "_shape"),
            find(base + "_zero_point")};
  }

  Directory dir_;
  ModelConfig config_;
  GenerationConfig generation_;
  PackScheme scheme_;
  std::map<std::string, Part, std::less<>> parts_;  // by canonical name
  std::vector<SkippedTensors> skipped_;
};

void HfCheckpoint::load_file(const std::shared_ptr<const Blob>& file,
                             std::map<std::string, bool>* wanted) {
  for (StoredTensor& t : parse_safetensors(file->bytes(), file->name())) {
    if (wanted != nullptr) {
      const auto it = wanted->find(t.name);
      if (it == wanted->end()) continue;
      it->second = true;
    }
    if (config_.hybrid()) {
      if (const auto what = skipped_part(t.name); !what.empty()) {
        skip(what, t);
        continue;
      }
    }
    const std::string name = canonical_name(t.name);
    const Part part{std::move(t), file};
    auto experts = config_.moe.experts > 0 ? split_experts(name, part, config_.moe.experts)
                                           : std::vector<std::pair<std::string, Part>>{};
    if (experts.empty()) add(name, part);
    for (auto& [expert, matrix] : experts) add(expert, std::move(matrix));
  }
}

void HfCheckpoint::add(const std::string& name, Part part) {
  const std::string file = part.file->name();
  require(parts_.try_emplace(name, std::move(part)).second,
          "{}: tensor {} is stored twice, under two prefixes", file, quote(name));
}

void HfCheckpoint::skip(std::string_view what, const StoredTensor& t) {
  auto it = std::find_if(skipped_.begin(), skipped_.end(),
                         [&](const SkippedTensors& s) { return s.what == what; });
  if (it == skipped_.end()) it = skipped_.insert(it, {std::string(what)});
  ++it->tensors;
  it->bytes += t.data.size();
  it->parameters += t.data.size() / dtype_size(t.dtype);
}

void HfCheckpoint::load_files() {
  if (const auto single = dir_.blob(std::string(kSingle))) return load_file(single, nullptr);
  const auto index = dir_.text(std::string(kIndex));
  require(index.has_value(), "{}: neither {} nor {}; only safetensors weights are supported",
          dir_.name, kSingle, kIndex);
  load_shards(*index);
}

void HfCheckpoint::load_shards(const std::string& index) {
  const std::string where = path(kIndex);
  const Json root = parse_json_object(index, where);
  const Json* map = JsonFields(root, where).find("weight_map");
  require(map != nullptr && map->is_object(), "{}: \"weight_map\" is missing", where);
  std::map<std::string, std::map<std::string, bool>> shards;  // file -> its tensors -> found
  for (const auto& [tensor, file] : map->items()) {
    const std::string f = file.is_string() ? file.get<std::string>() : "";
    require(f.ends_with(".safetensors") && f.find_first_of("/\\") == std::string::npos &&
                f.find('\0') == std::string::npos,
            "{}: tensor {}: {} is not the name of a .safetensors file in this directory", where,
            quote(tensor), quote(file.is_string() ? f : file.dump()));
    shards[f][tensor] = false;
  }
  for (auto& [file, tensors] : shards) {
    const auto blob = dir_.blob(file);
    require(blob != nullptr, "{}: this shard is missing; fetch the model again", path(file));
    load_file(blob, &tensors);
    for (const auto& [tensor, found] : tensors)
      require(found, "{}: tensor {} is missing, though the index says it is here", path(file),
              quote(tensor));
  }
}

void HfCheckpoint::check_parts() const {
  for (const auto& [name, part] : parts_) {
    require(
        !name.ends_with(".weight_g_idx"),
        "{}: tensor {}: columns reordered by activation (actorder \"group\") are not supported; "
        "quantize without it, or with \"weight\"",
        part.file->name(), quote(name));
    const std::string base = packed_base(name);
    if (base.empty()) continue;
    require(find(base) == nullptr, "{}: tensor {} is stored both packed and plain", dir_.name,
            quote(base));
    check_packed(base, packed_parts(base), scheme_);
  }
}

std::optional<TokenizerSpec> HfCheckpoint::tokenizer() const {
  const auto json = dir_.text("tokenizer.json");
  if (!json) return std::nullopt;
  TokenizerSpec spec = tokenizer_spec_from_json(*json, path("tokenizer.json"));
  const auto text = dir_.text("tokenizer_config.json");
  if (!text) return spec;
  const std::string where = path("tokenizer_config.json");
  const Json root = parse_json_object(*text, where);
  const JsonFields c(root, where);
  // add_bos_token, add_eos_token: where given, they override what tokenizer.json's own
  // post-processor puts around a text.
  const auto apply = [&](std::string_view flag, std::string_view token,
                         std::vector<std::int32_t>& ids) {
    if (c.find(flag) == nullptr) return;
    if (!c.boolean_or(flag, false)) {
      ids.clear();
      return;
    }
    const Json* t = c.find(token);
    if (!ids.empty() || t == nullptr) return;
    const std::string content =
        t->is_object() ? c.object(token).string_or("content", "") : c.string_or(token, "");
    const auto it = std::find_if(spec.added.begin(), spec.added.end(),
                                 [&](const AddedToken& a) { return a.text == content; });
    require(it != spec.added.end(), "{}: \"{}\" {} is no special token of tokenizer.json", where,
            token, quote(content));
    ids = {it->id};
  };
  apply("add_bos_token", "bos_token", spec.prefix_ids);
  apply("add_eos_token", "eos_token", spec.suffix_ids);
  return spec;
}

std::optional<std::string> HfCheckpoint::chat_template() const {
  if (auto jinja = dir_.text("chat_template.jinja")) return jinja;
  const auto text = dir_.text("tokenizer_config.json");
  if (!text) return std::nullopt;
  const std::string where = path("tokenizer_config.json");
  const Json root = parse_json_object(*text, where);
  const Json* t = JsonFields(root, where).find("chat_template");
  if (t == nullptr) return std::nullopt;
  if (t->is_string()) return t->get<std::string>();
  require(t->is_array(), "{}: \"chat_template\" must be a string or a list", where);
  for (const Json& entry : *t) {
    const JsonFields named(entry, where + ": chat_template");
    if (named.string_or("name", "") == "default") return named.string_or("template", "");
  }
  return std::nullopt;
}

}  // namespace

std::unique_ptr<Checkpoint> open_hf(Directory directory) {
  return std::make_unique<HfCheckpoint>(std::move(directory));
}

}  // namespace nibble
