#include "verify/weights.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "base/half.h"
#include "int4/quantise.h"

namespace nibble::verify {
namespace {

constexpr int kQuantiles = 1 << 16;

std::uint64_t splitmix(std::uint64_t& state) {
  std::uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// The quantile function of N(0, 1) at (i + 1/2) / 2^16, by Newton's method on erfc.
const std::vector<float>& quantiles() {
  static const std::vector<float> table = [] {
    std::vector<float> t(kQuantiles);
    double x = 0;
    for (int i = kQuantiles / 2; i < kQuantiles; ++i) {
      const double tail = 1 - (i + 0.5) / kQuantiles;
      for (int step = 0; step < 20; ++step) {
        const double error = 0.5 * std::erfc(x / std::sqrt(2.0)) - tail;
        x += error / (std::exp(-x * x / 2) / std::sqrt(2 * M_PI));
        if (std::fabs(error) < 1e-12) break;
      }
      t[static_cast<std::size_t>(i)] = static_cast<float>(x);
      t[static_cast<std::size_t>(kQuantiles - 1 - i)] = -static_cast<float>(x);
    }
    return t;
  }();
  return table;
}

float as_half(float x) { return half_to_float(float_to_half(x)); }

// One group of Int4Aff or Int8.
void quantise_group(WeightType type, const float* x, int n, std::uint8_t* codes, float& scale,
                    float& offset) {
  const auto [low, high] = std::minmax_element(x, x + n);
  if (type == WeightType::Int4Aff) {
    scale = as_half((*high - *low) / 15), offset = as_half(*low);
  } else {
    scale = as_half(std::max(*high, -*low) / 127), offset = 0;
  }
  const float inverse = scale > 0 ? 1 / scale : 0;
  const float bottom = type == WeightType::Int8 ? -127.0f : 0.0f,
              top = type == WeightType::Int8 ? 127.0f : 15.0f;
  for (int i = 0; i < n; ++i)
    codes[i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(
        std::floor(std::clamp((x[i] - offset) * inverse, bottom, top) + 0.5f)));
}

}  // namespace

void normal_row(std::uint64_t seed, std::int64_t row, float scale, std::int64_t n, float* out) {
  const float* table = quantiles().data();
  std::uint64_t state = seed;
  state = splitmix(state) ^ static_cast<std::uint64_t>(row) * 0xd1342543de82ef95u;
  for (std::int64_t i = 0; i < n; i += 4) {
    std::uint64_t bits = splitmix(state);
    for (std::int64_t j = i; j < std::min(i + 4, n); ++j, bits >>= 16)
      out[j] = scale * table[bits & (kQuantiles - 1)];
  }
}

std::vector<float> normal_floats(std::size_t n, std::uint64_t seed, float scale) {
  std::vector<float> v(n);
  normal_row(seed, 0, scale, static_cast<std::int64_t>(n), v.data());
  return v;
}

RandomWeight::RandomWeight(WeightType type, std::int64_t n, std::int64_t k, int group,
                           unsigned seed, bool scales_f16)
    : WeightSource("random", {type, n, k, is_quantised(type) ? group : 0, scales_f16}) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  const auto count = static_cast<std::size_t>(n * k);
  const auto groups = static_cast<std::size_t>(n * format_.groups());
  if (is_quantised(type)) {
    rows_.codes.resize(count);
    for (auto& c : rows_.codes)
      c = static_cast<std::uint8_t>(type == WeightType::Int8 ? rng() & 255 : rng() & 15);
    const auto scale = [&](float s) { return scales_f16 ? as_half(s) : s; };
    rows_.scales.resize(groups);
    for (auto& s : rows_.scales) s = scale(0.02f * normal(rng));
    if (type == WeightType::Int4Aff) {
      rows_.offsets.resize(groups);
      for (std::size_t g = 0; g < groups; ++g)
        rows_.offsets[g] = scale(-8 * rows_.scales[g] + 0.02f * normal(rng));
    }
  } else {
    rows_.values.resize(count);
    for (auto& v : rows_.values) {
      v = 0.05f * normal(rng);
      if (type == WeightType::F16) v = as_half(v);
      if (type == WeightType::BF16) v = bf16_to_float(float_to_bf16(v));
    }
  }
}

void RandomWeight::read(std::int64_t row, std::int64_t count, WeightRows& out) const {
  const auto cut = [&](const auto& in, auto& to, std::int64_t width) {
    if (in.empty()) return to.clear();
    to.assign(in.begin() + row * width, in.begin() + (row + count) * width);
  };
  cut(rows_.codes, out.codes, format_.k), cut(rows_.values, out.values, format_.k);
  cut(rows_.scales, out.scales, format_.groups());
  cut(rows_.offsets, out.offsets, format_.groups());
}

NormalWeight::NormalWeight(WeightType type, std::int64_t n, std::int64_t k, int group,
                           std::uint64_t seed, std::int64_t first)
    : WeightSource("normal", {type, n, k, is_quantised(type) ? group : 0, true}),
      seed_(seed),
      first_(first) {}

void NormalWeight::unquantised(std::int64_t row, std::int64_t count, float* out) const {
  for (std::int64_t r = 0; r < count; ++r)
    normal_row(seed_, first_ + row + r, 0.02f, format_.k, out + r * format_.k);
}

void NormalWeight::read(std::int64_t row, std::int64_t count, WeightRows& out) const {
  const std::int64_t k = format_.k, groups = format_.groups();
  const auto elements = static_cast<std::size_t>(count * k);
  out.values.resize(elements);
  unquantised(row, count, out.values.data());
  if (!is_quantised(format_.type)) {
    for (float& v : out.values) {
      if (format_.type == WeightType::F16) v = as_half(v);
      if (format_.type == WeightType::BF16) v = bf16_to_float(float_to_bf16(v));
    }
    return;
  }
  const auto scales = static_cast<std::size_t>(count * groups);
  out.codes.resize(elements), out.scales.resize(scales);
  if (format_.type == WeightType::Int4) {
    std::vector<std::uint16_t> half(scales);
    int4::quantise_rows(int4::Method::Rtn, out.values.data(), count, k, format_.group,
                        out.codes.data(), half.data(), name_, row);
    std::transform(half.begin(), half.end(), out.scales.begin(), half_to_float);
  } else {
    out.offsets.resize(scales);
    for (std::size_t g = 0; g < scales; ++g) {
      const std::size_t at = g * static_cast<std::size_t>(format_.group);
      quantise_group(format_.type, out.values.data() + at, format_.group, out.codes.data() + at,
                     out.scales[g], out.offsets[g]);
    }
    if (format_.type == WeightType::Int8) out.offsets.clear();
  }
  out.values.clear();
}

}  // namespace nibble::verify
