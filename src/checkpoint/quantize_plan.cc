#include "checkpoint/quantize_plan.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/error.h"
#include "base/half.h"
#include "checkpoint/names.h"

namespace nibble {
namespace {

constexpr std::string_view kEmbedding = "model.embed_tokens.weight", kHead = "lm_head.weight";

// A regular expression that is sought in names. Throws UsageError.
class NamePattern {
 public:
  explicit NamePattern(const std::string& pattern) : pattern_(pattern) {
    if (pattern.empty()) return;
    int error = 0;
    PCRE2_SIZE at = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                              PCRE2_UTF, &error, &at, nullptr));
    if (code_) return;
    PCRE2_UCHAR message[128];
    pcre2_get_error_message(error, message, sizeof message);
    fail_usage("keep {}: no regular expression: {} at byte {}", quote(pattern),
               reinterpret_cast<const char*>(message), at);
  }
  bool matches(std::string_view name) const {
    if (!code_) return false;
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
        pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
    const int rc = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(name.data()), name.size(),
                               0, 0, data.get(), nullptr);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
      fail_usage("keep {}: matching {} takes too long; use a simpler expression", quote(pattern_),
                 quote(name));
    return rc >= 0;
  }

 private:
  std::string pattern_;
  std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code_{nullptr, pcre2_code_free};
};

DType value_type(std::string_view stored) {
  for (const DType t : {DType::F16, DType::BF16})
    if (dtype_name(t) == stored) return t;
  return DType::F32;
}

// The 16-bit type that holds a matrix with the least loss: its own; bf16 where that is exact; else
// fp16, whose fraction is the longer one, where no value is too large for it.
DType plain_type(const WeightSource& w) {
  const WeightFormat& f = w.format();
  if (f.type == WeightType::F16) return DType::F16;
  if (f.type == WeightType::BF16) return DType::BF16;
  const std::int64_t block = std::max<std::int64_t>(1, (1 << 20) / f.k);
  bool bf16 = true, f16_fits = true;
  for (std::int64_t row = 0; row < f.n; row += block) {
    const std::int64_t count = std::min(block, f.n - row);
    for (const float x : dequantise(w, row, count)) {
      bf16 = bf16 && bf16_to_float(float_to_bf16(x)) == x;
      f16_fits = f16_fits && std::isfinite(half_to_float(float_to_half(x)));
    }
    w.release(row, count);
  }
  return bf16 || !f16_fits ? DType::BF16 : DType::F16;
}

std::string groups_that_divide(std::int64_t k) {
  std::string list;
  for (const int g : {128, 64, 32})
    if (k % g == 0) list += fmt::format("{}{}", list.empty() ? "" : ", ", g);
  return list;
}

// "model.layers.0.mlp.up_proj.weight" -> "model.layers.0.mlp.up_proj"
std::string module_of(const std::string& name) { return name.substr(0, name.rfind('.')); }

bool is_matrix(const TensorInfo& t) {
  return t.shape.size() == 2 && t.name.ends_with(".weight") &&
         (t.name == kEmbedding || t.name == kHead || t.name.starts_with("model.layers."));
}

}  // namespace

std::vector<PlannedTensor> QuantizePlan::tensors(int group) const {
  std::vector<PlannedTensor> list;
  for (const QuantizeStep& s : steps) {
    const auto& name = s.info.name;
    if (!s.int4()) {
      list.push_back({name, s.dtype, s.info.shape});
      continue;
    }
    const std::int64_t n = s.info.shape[0], k = s.info.shape[1];
    list.push_back({name + "_shape", DType::I64, {2}});
    list.push_back({name + "_packed", DType::I32, {n, k / 8}});
    list.push_back({name + "_scale", s.dtype, {n, k / group}});
  }
  return list;
}

QuantizePlan plan_quantize(const Checkpoint& checkpoint, const QuantizeOptions& options) {
  const int group = options.group;
  if (group != 32 && group != 64 && group != 128)
    fail_usage("group {} is not supported; 128, 64 and 32 are", group);
  const NamePattern keep(options.keep);
  QuantizePlan plan;
  bool kept = options.keep.empty();
  for (TensorInfo& info : checkpoint.tensors()) {
    if (!checkpoint.has(info.name) || info.name.ends_with(".rotary_emb.inv_freq")) continue;
    QuantizeStep step;
    const std::string& name = info.name;
    if (!is_matrix(info)) {
      const bool taps = info.shape.size() == 3 && info.shape[1] == 1;
      require(info.shape.size() == 1 || (taps && name.ends_with(".conv1d.weight")),
              "tensor {} with {} dimensions has no place in a supported "
              "model; quantize cannot tell what it is",
              quote(name), info.shape.size());
      step.dtype = value_type(info.stored_type);
      step.info = std::move(info);
      plan.steps.push_back(std::move(step));
      continue;
    }
    const std::int64_t n = info.shape[0], k = info.shape[1];
    const auto source = checkpoint.weight(name, n, k);
    const WeightFormat& f = source->format();
    const bool asked_to_stay = keep.matches(name);
    kept |= asked_to_stay;
    if (asked_to_stay || (name == kEmbedding && !options.int4_embedding)) {
      step.to = QuantizeStep::To::Plain;
      step.dtype = plain_type(*source);
      if (name != kEmbedding) plan.ignore.push_back(module_of(name));
    } else {
      const std::string fitting = groups_that_divide(k);
      require(k % group == 0, "tensor {}: K = {} is no multiple of the group {}; {}", quote(name),
              k, group,
              fitting.empty() ? "none fits: keep this tensor in 16 bit (--keep)"
                              : "groups that fit: " + fitting);
      const bool copied = f.type == WeightType::Int4 && f.group % group == 0;
      step.to = copied ? QuantizeStep::To::Copied : QuantizeStep::To::Packed;
      step.dtype = copied && !f.scales_are_f16 ? DType::F32 : DType::F16;
      plan.int4_embedding |= name == kEmbedding;
    }
    step.info = std::move(info);
    plan.steps.push_back(std::move(step));
  }
  if (!kept) fail_usage("keep {}: no matrix has a name that matches", quote(options.keep));
  // A tied head has no tensor of its own, but loaders see a linear module.
  if (checkpoint.config().tied_embedding) plan.ignore.emplace_back("lm_head");
  return plan;
}

}  // namespace nibble
