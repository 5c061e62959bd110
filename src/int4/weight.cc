#include "int4/weight.h"

namespace nibble {

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
