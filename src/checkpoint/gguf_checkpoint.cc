// A GGUF file behind the Checkpoint interface.
#include <algorithm>
#include <map>
#include <utility>

#include "base/error.h"
#include "base/half.h"
#include "checkpoint/gguf.h"
#include "checkpoint/gguf_hybrid.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/names.h"
#include "checkpoint/reader.h"
#include "checkpoint/values.h"

namespace nibble {
namespace {

// Row order of a tensor. llama-architecture files store the rows of q and k for interleaved RoPE:
// within a head of `head_dim` rows, Hugging Face's row i of half h lies at 2i + h. Those of hybrid
// models order value heads, and the columns that meet them, in their own way.
struct RowOrder {
  std::int64_t head_dim = 0;  // 0: not so
  HeadOrder heads = {}, columns = {};
  std::int64_t stored(std::int64_t row) const {
    if (head_dim == 0) return heads.stored(row);
    const std::int64_t in_head = row % head_dim, half = head_dim / 2;
    return row - in_head + 2 * (in_head % half) + in_head / half;
  }
};

class GgufWeight : public WeightSource {
 public:
  // as: what the rows become: type.runs_as, or F16 to keep a requantised type in 16 bit.
  GgufWeight(std::string name, const GgufTensor& t, WeightType as, RowOrder order,
             std::shared_ptr<const Blob> file)
      : WeightSource(std::move(name), {as, t.shape[0], t.columns(), is_quantised(as) ? 32 : 0,
                                       t.type->scales_are_f16}),
        tensor_(t),
        order_(order),
        file_(std::move(file)) {}

  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override {
    const auto k = static_cast<std::size_t>(format_.k), n = static_cast<std::size_t>(count);
    const bool quantised = is_quantised(format_.type);
    const std::size_t groups = quantised ? n * (k / 32) : 0;
    out.codes.resize(quantised ? n * k : 0);
    out.scales.resize(groups);
    out.offsets.resize(format_.type == WeightType::Int4Aff ? groups : 0);
    out.values.resize(quantised ? 0 : n * k);
    std::vector<float> decoded(tensor_.type->requantised() ? k : 0);
    for (std::size_t r = 0; r < n; ++r)
      read_row(row + static_cast<std::int64_t>(r), r, decoded, out);
    if (order_.columns.unit > 0) {
      reorder_columns(out.codes, 1), reorder_columns(out.values, 1);
      reorder_columns(out.scales, 32), reorder_columns(out.offsets, 32);
    }
    if (!all_finite(out.scales.data(), groups) ||
        !all_finite(out.offsets.data(), out.offsets.size()) ||
        !all_finite(out.values.data(), out.values.size()))
      refuse(row, count);
  }

  void release(std::int64_t row, std::int64_t count) const override {
    if (order_.heads.unit > 0) return;  // the rows lie all over the tensor
    std::int64_t first = row, last = row + count;
    if (order_.head_dim > 0) {  // whole heads
      first -= first % order_.head_dim;
      last = std::min(format_.n, (last + order_.head_dim - 1) / order_.head_dim * order_.head_dim);
    }
    const auto stride = static_cast<std::size_t>(tensor_.row_bytes());
    file_->release(tensor_.data.subspan(static_cast<std::size_t>(first) * stride,
                                        static_cast<std::size_t>(last - first) * stride));
  }

 private:
  // Entries of rows, each for `width` columns, into Hugging Face's order: a head's stay together.
  template <class T>
  void reorder_columns(std::vector<T>& rows, std::int64_t width) const {
    const HeadOrder& order = order_.columns;
    const std::int64_t n = format_.k / width, first = order.first / width;
    std::vector<T> stored(static_cast<std::size_t>(n));
    for (T *to = rows.data(), *end = to + rows.size(); to != end; to += n) {
      std::copy_n(to, n, stored.begin());
      for (std::int64_t i = first; i < n; i += order.unit / width)
        std::copy_n(stored.begin() + order.stored(i * width) / width, order.unit / width, to + i);
    }
  }

  [[noreturn]] void refuse(std::int64_t row, std::int64_t count) const {
    fail("{}: tensor {}: a {} in rows {}..{} is not finite; the file is damaged", file_->name(),
         quote(tensor_.name), is_quantised(format_.type) ? "scale" : "value", row, row + count - 1);
  }

  // Row `row` into place r of `out`.
  void read_row(std::int64_t row, std::size_t r, std::vector<float>& decoded,
                WeightRows& out) const {
    const BlockType& type = *tensor_.type;
    const auto k = static_cast<std::size_t>(format_.k), groups = k / 32;
    const std::byte* src = tensor_.data.data() + order_.stored(row) * tensor_.row_bytes();
    const std::int64_t blocks = format_.k / type.values;
    if (type.split != nullptr) {
      type.split(src, blocks, &out.codes[r * k], &out.scales[r * groups],
                 out.offsets.empty() ? nullptr : &out.offsets[r * groups]);
    } else if (!type.requantised()) {
      type.decode(src, blocks, &out.values[r * k]);
    } else {
      type.decode(src, blocks, decoded.data());
      if (!all_finite(decoded.data(), k)) refuse(row, 1);
      if (format_.type == WeightType::Int8)
        requantise_int8(decoded.data(), k, &out.codes[r * k], &out.scales[r * groups]);
      else
        for (std::size_t i = 0; i < k; ++i)
          out.values[r * k + i] = half_to_float(float_to_half(decoded[i]));
    }
  }

  GgufTensor tensor_;
  RowOrder order_;
  std::shared_ptr<const Blob> file_;
};

class GgufCheckpoint : public Checkpoint {
 public:
  GgufCheckpoint(std::shared_ptr<const Blob> file, const OpenOptions& options)
      : file_(std::move(file)),
        options_(options),
        gguf_(file_->bytes(), file_->name()),
        config_(gguf_config(gguf_)),
        generation_(gguf_generation(gguf_)) {
    for (const GgufTensor& t : gguf_.tensors()) {
      if (t.name == "rope_freqs.weight") continue;  // part of the configuration
      if (config_.hybrid()) {
        add_hybrid(t);
        continue;
      }
      const std::string name = gguf_to_hf_name(t.name);
      require(!name.empty(),
              "{}: tensor {} has no place in a {} model; this variant is not supported",
              file_->name(), quote(t.name), config_.architecture);
      by_name_.emplace(name, &t);
    }
  }

  std::string format() const override { return fmt::format("gguf v{}", gguf_.version()); }
  const ModelConfig& config() const override { return config_; }
  const GenerationConfig& generation() const override { return generation_; }

  std::vector<TensorInfo> tensors() const override {
    std::vector<TensorInfo> list;
    for (const auto& [name, t] : by_name_)
      list.push_back({name,
                      std::string(t->type->name),
                      {t->shape.begin(), t->shape.begin() + t->rank},
                      t->data.size(),
                      note(*t)});
    return list;
  }

  bool has(std::string_view name) const override { return by_name_.contains(name); }

  std::unique_ptr<WeightSource> weight(std::string_view name, std::int64_t n,
                                       std::int64_t k) const override {
    const GgufTensor& t = required(name);
    require(t.rank == 2 && t.shape[0] == n && t.shape[1] == k,
            "{}: tensor {}: expected [{}, {}], got [{}]", file_->name(), quote(t.name), n, k,
            fmt::join(t.shape.begin(), t.shape.begin() + t.rank, ", "));
    return std::make_unique<GgufWeight>(std::string(name), t, runs_as(t), row_order(name, t),
                                        file_);
  }

  std::vector<float> vector(std::string_view name, std::int64_t size) const override {
    const GgufTensor& t = required(name);
    const bool taps = t.rank == 3 && t.shape[1] == 1;  // of a depthwise convolution
    const std::int64_t width = taps ? t.shape[2] : 1;
    require((taps || t.rank == 1) && t.shape[0] * width == size,
            "{}: tensor {}: expected [{}], got [{}]", file_->name(), quote(t.name), size,
            fmt::join(t.shape.begin(), t.shape.begin() + t.rank, ", "));
    std::vector<float> stored(static_cast<std::size_t>(size)), v(stored.size());
    decode_blocks(*t.type, t.data.data(), size / t.type->values, stored.data());
    require(all_finite(stored.data(), stored.size()),
            "{}: tensor {}: a value is not finite (NaN or Inf); the file is damaged", file_->name(),
            quote(t.name));
    const RowOrder order = row_order(name, t);
    for (std::int64_t i = 0; i < size; ++i)
      v[static_cast<std::size_t>(i)] =
          stored[static_cast<std::size_t>(order.stored(i / width) * width + i % width)];
    if (config_.hybrid()) undo_converter(name, v);
    return v;
  }

  std::optional<TokenizerSpec> tokenizer() const override { return gguf_tokenizer(gguf_); }
  std::optional<std::string> chat_template() const override {
    const auto t = gguf_.string("tokenizer.chat_template");
    return t ? std::optional<std::string>(*t) : std::nullopt;
  }

  std::vector<SkippedTensors> skipped() const override {
    if (predicting_.tensors == 0) return {};
    return {predicting_};
  }

  std::vector<std::string> notices() const override {
    std::map<std::string_view, std::pair<int, std::string>> types;
    for (const auto& [name, t] : by_name_)
      if (auto text = note(*t); !text.empty()) {
        auto& [count, line] = types[t->type->name];
        ++count;
        line = std::move(text);
      }
    std::vector<std::string> lines;
    for (const auto& [type, found] : types)
      lines.push_back(fmt::format("{} tensor{} stored as {}: {}", found.first,
                                  found.first == 1 ? "" : "s", type, found.second));
    return lines;
  }

 private:
  const GgufTensor& required(std::string_view name) const {
    const auto it = by_name_.find(name);
    require(it != by_name_.end(), "{}: tensor {} is missing; the file is incomplete", file_->name(),
            quote(name));
    return *it->second;
  }

  WeightType runs_as(const GgufTensor& t) const {
    return t.type->requantised() && options_.keep_16bit ? WeightType::F16 : t.type->runs_as;
  }

  std::string note(const GgufTensor& t) const {
    if (t.rank < 2 || !t.type->requantised()) return "";
    return options_.keep_16bit ? "rounded to fp16 at load" : "requantised to int8 group 32 at load";
  }

  RowOrder hybrid_order(std::string_view name, const GgufTensor& t) const {
    const RowOrder o{.heads = nibble::row_order(name, config_),
                     .columns = column_order(name, config_)};
    require(o.columns.unit == 0 || t.type->values == 1 ||
                (t.type->values == 32 && o.columns.unit % 32 == 0),
            "{}: tensor {}: blocks of {} columns across heads of {} cannot be put in order; use a "
            "file in Q8_0, Q4_0 or 16 bit",
            file_->name(), quote(t.name), t.type->values, o.columns.unit);
    const auto whole = [&](const HeadOrder& h, std::int64_t size) {
      const std::int64_t want = h.first + config_.delta.value_heads * h.unit;
      require(h.unit == 0 || size == want, "{}: tensor {}: expected {} rows or columns, got {}",
              file_->name(), quote(t.name), want, size);
    };
    whole(o.heads, t.shape[0]), whole(o.columns, t.columns());
    return o;
  }

  void add_hybrid(const GgufTensor& t) {
    if (layer_of(t.name) >= config_.layers) {
      std::uint64_t values = 1;
      for (int i = 0; i < t.rank; ++i)
        values *= static_cast<std::uint64_t>(t.shape[static_cast<std::size_t>(i)]);
      ++predicting_.tensors, predicting_.parameters += values, predicting_.bytes += t.data.size();
      return;
    }
    const auto tensors = hybrid_tensors(t, config_.moe.experts, made_);
    require(!tensors.empty(),
            "{}: tensor {} has no place in a {} model; this variant is not supported",
            file_->name(), quote(t.name), config_.architecture);
    for (const auto& [name, tensor] : tensors) by_name_.emplace(name, tensor);
  }

  RowOrder row_order(std::string_view name, const GgufTensor& t) const {
    const bool permuted = config_.architecture == "llama" &&
                          (name.find(".self_attn.q_proj.") != std::string_view::npos ||
                           name.find(".self_attn.k_proj.") != std::string_view::npos);
    if (config_.hybrid()) return hybrid_order(name, t);
    if (!permuted) return {};
    require(t.shape[0] % config_.head_dim == 0,
            "{}: tensor {}: {} rows are no multiple of the head "
            "dimension {}",
            file_->name(), quote(t.name), t.shape[0], config_.head_dim);
    return {config_.head_dim};
  }

  std::shared_ptr<const Blob> file_;
  OpenOptions options_;
  Gguf gguf_;
  ModelConfig config_;
  GenerationConfig generation_;
  std::map<std::string, const GgufTensor*, std::less<>> by_name_;  // Hugging Face name
  std::deque<GgufTensor> made_;                                    // parts of the file's tensors
  SkippedTensors predicting_{"multi-token prediction"};
};

}  // namespace

std::unique_ptr<Checkpoint> open_gguf(std::shared_ptr<const Blob> file,
                                      const OpenOptions& options) {
  return std::make_unique<GgufCheckpoint>(std::move(file), options);
}

}  // namespace nibble
