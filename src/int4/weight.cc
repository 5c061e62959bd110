#include "int4/weight.h"

#include <algorithm>

namespace nibble {
namespace {

// f(part, row in it, rows) for the parts that rows [row, row + count) of a stack lie in.
template <class F>
void for_parts(std::int64_t rows_each, std::int64_t row, std::int64_t count, F&& f) {
  for (const std::int64_t end = row + count; row < end;) {
    const std::int64_t part = row / rows_each, n = std::min(end, (part + 1) * rows_each) - row;
    f(static_cast<std::size_t>(part), row - part * rows_each, n);
    row += n;
  }
}

}  // namespace

WeightStack::WeightStack(std::string name, std::vector<std::unique_ptr<WeightSource>> parts)
    : WeightSource(std::move(name), parts.front()->format()), parts_(std::move(parts)) {
  for (const auto& p : parts_) {
    const WeightFormat& f = p->format();
    require(
        f.type == format_.type && f.n == format_.n && f.k == format_.k && f.group == format_.group,
        "tensor {}: expected {} group {} as {} is, got {} group {}", p->name(),
        weight_type_name(format_.type), format_.group, parts_[0]->name(), weight_type_name(f.type),
        f.group);
    format_.scales_are_f16 &= f.scales_are_f16;
  }
  format_.n *= static_cast<std::int64_t>(parts_.size());
}

void WeightStack::read(std::int64_t row, std::int64_t count, WeightRows& out) const {
  const std::int64_t each = format_.n / static_cast<std::int64_t>(parts_.size());
  out = {};
  for_parts(each, row, count, [&](std::size_t part, std::int64_t at, std::int64_t n) {
    if (n == count) return parts_[part]->read(at, n, out);
    WeightRows some;
    parts_[part]->read(at, n, some);
    const auto append = [](auto& to, const auto& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(out.codes, some.codes), append(out.scales, some.scales);
    append(out.offsets, some.offsets), append(out.values, some.values);
  });
}

void WeightStack::release(std::int64_t row, std::int64_t count) const {
  const std::int64_t each = format_.n / static_cast<std::int64_t>(parts_.size());
  for_parts(each, row, count, [&](std::size_t part, std::int64_t at, std::int64_t n) {
    parts_[part]->release(at, n);
  });
}

std::vector<float> dequantise(const WeightSource& w, std::int64_t row, std::int64_t count) {
  const WeightFormat& f = w.format();
  WeightRows r;
  w.read(row, count, r);
  if (!is_quantised(f.type)) return std::move(r.values);
  std::vector<float> out(static_cast<std::size_t>(count * f.k));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t g = i / static_cast<std::size_t>(f.group);
    switch (f.type) {
      case WeightType::Int4:
        out[i] = static_cast<float>(r.codes[i] - 8) * r.scales[g];
        break;
      case WeightType::Int8:
        out[i] = static_cast<float>(static_cast<std::int8_t>(r.codes[i])) * r.scales[g];
        break;
      default:
        out[i] = static_cast<float>(r.codes[i]) * r.scales[g] + r.offsets[g];
    }
  }
  return out;
}

}  // namespace nibble
