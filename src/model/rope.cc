#include <cmath>
#include <numbers>

#include "model/model.h"

namespace nibble {

std::vector<float> rope_frequencies(const ModelConfig& c) {
  const std::int64_t dims = c.rotary_dims();
  std::vector<float> f(static_cast<std::size_t>(dims / 2));
  for (std::size_t d = 0; d < f.size(); ++d) {
    double w = std::pow(c.rope_theta, -2.0 * static_cast<double>(d) / static_cast<double>(dims));
    if (c.rope_scaling) {
      const RopeScaling& s = *c.rope_scaling;
      const double turns =
          static_cast<double>(s.original_max_position) * w / (2 * std::numbers::pi);
      if (turns < s.low_freq_factor) {
        w /= s.factor;
      } else if (turns < s.high_freq_factor) {
        const double smooth =
            (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
        w = (1 - smooth) * w / s.factor + smooth * w;
      }
    }
    if (!c.rope_factors.empty()) w /= c.rope_factors[d];
    f[d] = static_cast<float>(w);
  }
  return f;
}

void rope_table(std::span<const float> frequencies, std::span<const RowPlace> rows, float* out) {
  for (const RowPlace& r : rows)
    for (const float f : frequencies) {
      const double angle = static_cast<double>(r.position) * f;
      *out++ = static_cast<float>(std::cos(angle));
      *out++ = static_cast<float>(std::sin(angle));
    }
}

}  // namespace nibble
