#include "checkpoint/packed.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "checkpoint/names.h"
#include "checkpoint/values.h"

namespace nibble {
namespace {

bool is_float(DType t) { return t == DType::F32 || t == DType::F16 || t == DType::BF16; }

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

void check_part(const Part& p, bool dtype_ok, std::vector<std::int64_t> shape,
                std::string_view expected) {
  require(dtype_ok && p.tensor.shape == shape, "{}: tensor {}: expected {} {}, got {} {}",
          p.file->name(), quote(p.tensor.name), expected, shape_text(shape),
          dtype_name(p.tensor.dtype), shape_text(p.tensor.shape));
}

PackScheme::Group parse_group(const JsonFields& g, std::string_view default_format) {
  const std::string format = g.string_or("format", default_format);
  require(format == "pack-quantized",
          "{}: the format {} is not supported; \"pack-quantized\" (W4A16) is", g.where(),
          quote(format));
  for (const std::string_view key : {"input_activations", "output_activations"})
    require(g.find(key) == nullptr,
            "{}: \"{}\" is set; only weight-only quantization (W4A16) is supported", g.where(),
            key);
  const JsonFields w = g.object("weights");
  const auto bits = w.integer("num_bits", 1, 64);
  const std::string type = w.string_or("type", "int"), strategy = w.string_or("strategy", "group");
  require(bits == 4 && type == "int", "{}: {}-bit {} weights are not supported; 4-bit int is",
          w.where(), bits, quote(type));
  require(strategy == "group",
          "{}: the strategy {} is not supported; \"group\" with group_size 32, 64 or 128 is",
          w.where(), quote(strategy));
  const auto group = w.integer("group_size", -1, INT64_MAX);
  require(group == 32 || group == 64 || group == 128,
          "{}: group_size {} is not supported; 32, 64 and 128 are", w.where(), group);
  // "weight" and "static" order the calibration only; "group" permutes the columns.
  const Json* order = w.find("actorder");
  require(order == nullptr || *order == false || *order == "weight" || *order == "static",
          "{}: actorder {} is not supported; quantize without it, or with \"weight\"", w.where(),
          order == nullptr ? "" : quote(order->dump()));
  require(!w.boolean_or("dynamic", false), "{}: dynamic weights are not supported", w.where());
  return {static_cast<int>(group), w.boolean_or("symmetric", true)};
}

// Stored numbers -> fp32.
void widen(DType t, const std::byte* src, std::size_t n, float* out) {
  if (t == DType::F32)
    std::memcpy(out, src, n * 4);
  else if (t == DType::F16)
    widen_f16(src, n, out);
  else
    widen_bf16(src, n, out);
}

// n bytes (a multiple of 4) -> 2 n codes, a byte's low nibble first: four bytes at a time.
void spread_nibbles(const std::byte* src, std::size_t n, std::uint8_t* codes) {
  for (std::size_t i = 0; i < n; i += 4) {
    std::uint64_t x = load<std::uint32_t>(src + i);
    x = (x | x << 16) & 0x0000ffff0000ffff;
    x = (x | x << 8) & 0x00ff00ff00ff00ff;
    x = (x | x << 4) & 0x0f0f0f0f0f0f0f0f;
    std::memcpy(codes + 2 * i, &x, 8);
  }
}

bool exact_in_f16(float x) {
  const float size = std::fabs(x);
  const bool short_mantissa = (std::bit_cast<std::uint32_t>(x) & 0x1fff) == 0;
  if (size >= 0x1p-14f) return short_mantissa && size <= 65504;
  return std::trunc(size * 0x1p24f) == size * 0x1p24f;  // a multiple of the smallest subnormal
}

class PackedWeight : public WeightSource {
 public:
  PackedWeight(const std::string& name, const PackedParts& p, const PackedShape& s)
      : WeightSource(name, {p.zero != nullptr ? WeightType::Int4Aff : WeightType::Int4, s.n, s.k,
                            s.group, false}),
        packed_(*p.packed),
        scale_(*p.scale) {
    if (p.zero != nullptr) zero_ = *p.zero;
    format_.scales_are_f16 = scales_fit_f16();
  }

  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override {
    const auto words = static_cast<std::size_t>(format_.k / 2);  // bytes of codes in a row
    const auto n = static_cast<std::size_t>(count) * words;
    const std::byte* src = packed_.tensor.data.data() + static_cast<std::size_t>(row) * words;
    out.codes.resize(2 * n);
    spread_nibbles(src, n, out.codes.data());
    read_scales(row, count, out);
    out.values.clear();
    // A group's values must be finite too: its largest code is 15, its largest zero point 15.
    bool finite = true;
    for (const float s : out.scales) finite &= std::fabs(s) < 0x1p124f;
    if (!finite)
      fail("{}: tensor {}: a scale in rows {}..{} is not finite; the file is damaged",
           scale_.file->name(), quote(scale_.tensor.name), row, row + count - 1);
  }

  void release(std::int64_t row, std::int64_t count) const override {
    for (const Part* p : {&packed_, &scale_}) {
      const auto stride = p->tensor.data.size() / static_cast<std::size_t>(format_.n);
      p->file->release(p->tensor.data.subspan(static_cast<std::size_t>(row) * stride,
                                              static_cast<std::size_t>(count) * stride));
    }
  }

 private:
  // Scales and offsets of rows [row, row + count).
  void read_scales(std::int64_t row, std::int64_t count, WeightRows& out) const {
    const auto groups = static_cast<std::size_t>(format_.groups());
    const auto first = static_cast<std::size_t>(row) * groups;
    const auto n = static_cast<std::size_t>(count) * groups;
    out.scales.resize(n);
    widen(scale_.tensor.dtype, scale_.tensor.data.data() + first * dtype_size(scale_.tensor.dtype),
          n, out.scales.data());
    out.offsets.resize(zero_ ? n : 0);
    for (std::size_t i = 0; i < out.offsets.size(); i += groups)
      for (std::size_t g = 0; g < groups; ++g)
        out.offsets[i + g] = -zero_point((first + i) / groups, g) * out.scales[i + g];
  }

  float zero_point(std::size_t row, std::size_t g) const {
    const auto groups = static_cast<std::size_t>(format_.groups());
    const std::byte* data = zero_->tensor.data.data();
    if (zero_->tensor.dtype == DType::I8)
      return static_cast<float>(load<std::int8_t>(data + row * groups + g) + 8);
    const auto word = load<std::uint32_t>(data + 4 * (row / 8 * groups + g));
    return static_cast<float>((word >> (4 * (row % 8))) & 15);
  }

  bool scales_fit_f16() const {
    if (scale_.tensor.dtype == DType::F16 && !zero_) return true;
    WeightRows r;
    for (std::int64_t row = 0; row < format_.n; ++row) {
      read_scales(row, 1, r);
      if (!std::all_of(r.scales.begin(), r.scales.end(), exact_in_f16)) return false;
      if (!std::all_of(r.offsets.begin(), r.offsets.end(), exact_in_f16)) return false;
    }
    return true;
  }

  Part packed_, scale_;
  std::optional<Part> zero_;
};

}  // namespace

PackScheme parse_pack_scheme(const Json& config, std::string_view where) {
  const JsonFields c(config, std::string(where));
  const bool older = c.find("quantization_config") == nullptr;  // early compressed-tensors files
  const std::string_view key = older ? "compression_config" : "quantization_config";
  if (c.find(key) == nullptr) return {};
  const JsonFields q = c.object(key);
  const std::string method = q.string_or("quant_method", "compressed-tensors");
  require(method == "compressed-tensors",
          "{}: quantized with {}, which is not supported; \"compressed-tensors\" W4A16 is, and "
          "unquantized checkpoints and GGUF",
          q.where(), quote(method));
  require(q.find("kv_cache_scheme") == nullptr, "{}: \"kv_cache_scheme\" is not supported",
          q.where());
  for (const std::string_view field : {"transform_config", "sparsity_config"}) {
    const Json* v = q.find(field);
    require(v == nullptr || v->empty() || q.object(field).string_or("format", "") == "dense",
            "{}: \"{}\" is not supported", q.where(), field);
  }
  const Json* groups = q.find("config_groups");
  require(groups != nullptr && groups->is_object() && !groups->empty(),
          "{}: \"config_groups\" must name at least one group", q.where());
  PackScheme scheme;
  for (const auto& [name, group] : groups->items())
    scheme.groups.push_back(
        parse_group(JsonFields(group, fmt::format("{}: config_groups: {}", q.where(), quote(name))),
                    q.string_or("format", "")));
  return scheme;
}

PackedShape check_packed(const std::string& name, const PackedParts& p, const PackScheme& scheme) {
  const std::string& file = p.packed->file->name();
  require(p.scale != nullptr && p.shape != nullptr,
          "{}: tensor {}: its {} is missing; the checkpoint is incomplete", file, quote(name),
          p.scale == nullptr ? "weight_scale" : "weight_shape");
  require(!scheme.groups.empty(),
          "{}: tensor {} is packed, but config.json has no quantization_config", file, quote(name));
  const StoredTensor& st = p.shape->tensor;
  check_part(*p.shape, st.dtype == DType::I64 || st.dtype == DType::I32, {2}, "I64");
  std::int64_t dims[2];
  for (int i = 0; i < 2; ++i)
    dims[i] = st.dtype == DType::I64 ? load<std::int64_t>(st.data.data() + 8 * i)
                                     : load<std::int32_t>(st.data.data() + 4 * i);
  const auto [n, k] = dims;
  require(n > 0 && k > 0 && k % 8 == 0, "{}: tensor {}: weight_shape [{}, {}] is not possible",
          p.shape->file->name(), quote(name), n, k);
  check_part(*p.packed, p.packed->tensor.dtype == DType::I32, {n, k / 8}, "I32");

  const auto& ss = p.scale->tensor.shape;
  const std::int64_t groups = ss.size() == 2 ? ss[1] : 0;
  const std::int64_t group = groups > 0 && k % groups == 0 ? k / groups : 0;
  const bool symmetric = p.zero == nullptr;
  const bool declared = std::any_of(scheme.groups.begin(), scheme.groups.end(), [&](const auto& g) {
    return g.group == group && g.symmetric == symmetric;
  });
  require(declared,
          "{}: tensor {}: scales {} for K = {}, {} zero points, fit no group of "
          "quantization_config",
          p.scale->file->name(), quote(name), shape_text(ss), k, symmetric ? "without" : "with");
  check_part(*p.scale, is_float(p.scale->tensor.dtype), {n, groups}, "F16, BF16 or F32");
  if (!symmetric) {
    const DType t = p.zero->tensor.dtype;
    check_part(*p.zero, t == DType::I32 || t == DType::I8,
               {t == DType::I8 ? n : (n + 7) / 8, groups}, "I32 or I8");
  }
  return {n, k, static_cast<int>(group)};
}

std::unique_ptr<WeightSource> packed_weight(const std::string& name, const PackedParts& parts,
                                            const PackedShape& shape) {
  return std::make_unique<PackedWeight>(name, parts, shape);
}

}  // namespace nibble
