// The scale search. A group is normalised to y = x / |m|, m its element of largest magnitude. For a
// candidate scale the codes q are the nearest ones, and among scales for these codes the best is
// A / B, with A = sum w y q and B = sum w q^2; its error is sum w y^2 - A^2 / B. So a pass over the
// group yields A and B only, and the candidate of largest A^2 / B wins. Sums run in eight fixed
// lanes: they vectorise, and give the same bits on every instruction set.
#include "int4/quantise.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "int4/format.h"

namespace nibble::int4 {
namespace {

constexpr int kLanes = 8, kMaxGroup = 128;

// Candidate scales are +-|m| / t.
constexpr auto kGrid = [] {
  std::array<float, 19> t{};
  for (std::size_t i = 0; i < t.size(); ++i) t[i] = 5.75f + 0.25f * static_cast<float>(i);
  return t;
}();

struct Sums {
  float yq, qq;  // sum w y q, sum w q^2
  float gain() const { return qq > 0 ? yq * yq / qq : 0; }
};

float add_lanes(const float* v) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// The nearest code to y / scale, less 8; inverse = 1 / scale.
float nearest(float y, float inverse) {
  float v = y * inverse + 8.5f;
  v = v > 0.0f ? v : 0.0f;
  v = v < 15.5f ? v : 15.5f;
  return static_cast<float>(static_cast<int>(v) - 8);
}

Sums sums(const float* y, const float* w, int n, float inverse) {
  float yq[kLanes] = {}, qq[kLanes] = {};
  for (int i = 0; i < n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      const float q = nearest(y[i + j], inverse);
      const float wq = w[i + j] * q;
      yq[j] += wq * y[i + j];
      qq[j] += wq * q;
    }
  return {add_lanes(yq), add_lanes(qq)};
}

// sum w (x - scale (code - 8))^2
double objective(const float* x, const float* w, int n, const std::uint8_t* codes, float scale) {
  double sum[kLanes] = {};
  for (int i = 0; i < n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      const double e = x[i + j] - static_cast<double>(scale) * (codes[i + j] - 8);
      sum[j] += w[i + j] * e * e;
    }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

std::uint16_t search_group(const float* x, int n, std::uint8_t* codes) {
  const std::uint16_t rtn = quantise_group(x, n, codes);
  const float rtn_scale = half_to_float(rtn);
  float largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  if (rtn_scale == 0 || !std::isfinite(rtn_scale)) return rtn;

  float y[kMaxGroup], w[kMaxGroup];
  float squares[kLanes] = {};
  const float unit = 1.0f / largest;
  for (int i = 0; i < n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      y[i + j] = x[i + j] * unit;
      squares[j] += y[i + j] * y[i + j];
    }
  const float sigma = std::sqrt(add_lanes(squares) / static_cast<float>(n));
  for (int i = 0; i < n; ++i) w[i] = sigma + std::fabs(y[i]);
  const double rtn_error = objective(x, w, n, codes, rtn_scale);
  if (rtn_error == 0) return rtn;

  Sums best{0, 0};
  for (const float t : kGrid)
    for (const float inverse : {t, -t}) {
      const Sums s = sums(y, w, n, inverse);
      if (s.gain() > best.gain()) best = s;
    }
  // Nearest codes and best scale in turn: each step lowers the error, but for the rounding to fp16.
  std::uint16_t found = rtn;
  for (int step = 0; step < 4 && best.qq > 0; ++step) {
    const std::uint16_t next = float_to_half(best.yq / best.qq * largest);
    const float scale = half_to_float(next);
    if (next == found || scale == 0 || !std::isfinite(scale)) break;
    found = next;
    best = sums(y, w, n, largest / scale);
  }
  const float scale = half_to_float(found);
  std::uint8_t trial[kMaxGroup];
  for (int i = 0; i < n; ++i)
    trial[i] = static_cast<std::uint8_t>(nearest(y[i], largest / scale) + 8);
  if (objective(x, w, n, trial, scale) >= rtn_error) return rtn;
  std::copy(trial, trial + n, codes);
  return found;
}

}  // namespace

void quantise_rows(Method method, const float* x, std::int64_t rows, std::int64_t k, int group,
                   std::uint8_t* codes, std::uint16_t* scales, std::string_view tensor,
                   std::int64_t first_row) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < k; c += group) {
      const std::int64_t at = r * k + c;
      const std::uint16_t scale = method == Method::Rtn ? quantise_group(x + at, group, codes + at)
                                                        : search_group(x + at, group, codes + at);
      require((scale & 0x7c00) != 0x7c00,
              "tensor {}: row {}, columns {}..{} hold a value beyond +-524,000, too large for an "
              "fp16 scale; keep this tensor in 16 bit (--keep)",
              tensor, first_row + r, c, c + group - 1);
      scales[at / group] = scale;
    }
}

void pack(const std::uint8_t* codes, std::int64_t count, std::uint32_t* words) {
  for (std::int64_t i = 0; i < count; i += 8) words[i / 8] = pack8(codes + i);
}

}  // namespace nibble::int4
