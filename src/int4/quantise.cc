// The scale search. A group is normalised to y = x / |m|, m its element of largest magnitude. For a
// candidate scale the codes q are the nearest ones, and among scales for these codes the best is
// A / B, with A = sum w y q and B = sum w q^2; its error is sum w y^2 - A^2 / B. So a pass over the
// group yields A and B only, and the candidate of largest A^2 / B wins. Sums run in eight fixed
// lanes, so that they are the same bits on every instruction set.
#include "int4/quantise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "int4/format.h"

namespace nibble::int4 {
namespace {

constexpr int kLanes = 8, kMaxVectors = 128 / kLanes;
using Floats = float __attribute__((vector_size(4 * kLanes)));  // GCC and clang split it as needed
using Ints = std::int32_t __attribute__((vector_size(4 * kLanes)));

// Candidate scales are +-|m| / t.
constexpr auto kGrid = [] {
  std::array<float, 19> t{};
  for (std::size_t i = 0; i < t.size(); ++i) t[i] = 5.75f + 0.25f * static_cast<float>(i);
  return t;
}();

float add_lanes(const Floats& v) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

struct Sums {
  float yq, qq;  // sum w y q, sum w q^2
  float gain() const { return qq > 0 ? yq * yq / qq : 0; }
};

// A group in units of its largest magnitude, and the weights of its errors.
struct Group {
  Floats y[kMaxVectors], w[kMaxVectors];
  int vectors;

  // q: the nearest codes to y[i] / scale, less 8; inverse = 1 / scale.
  void nearest(int i, float inverse, Floats& q) const {
    Floats v = y[i] * inverse + 8.5f;
    v = v > 0.0f ? v : Floats{};
    v = v < 15.5f ? v : Floats{} + 15.5f;
    q = __builtin_convertvector(__builtin_convertvector(v, Ints), Floats) - 8.0f;
  }

  Sums sums(float inverse) const {
    Floats yq{}, qq{};
    for (int i = 0; i < vectors; ++i) {
      Floats q;
      nearest(i, inverse, q);
      const Floats wq = w[i] * q;
      yq += wq * y[i];
      qq += wq * q;
    }
    return {add_lanes(yq), add_lanes(qq)};
  }
};

Group normalise(const float* x, int n, float largest) {
  Group g;
  g.vectors = n / kLanes;
  const float unit = 1.0f / largest;
  Floats squares{};
  for (int i = 0; i < g.vectors; ++i) {
    std::memcpy(&g.y[i], x + i * kLanes, sizeof(Floats));
    g.y[i] *= unit;
    squares += g.y[i] * g.y[i];
  }
  const float sigma = std::sqrt(add_lanes(squares) / static_cast<float>(n));
  for (int i = 0; i < g.vectors; ++i) g.w[i] = sigma + (g.y[i] < 0.0f ? -g.y[i] : g.y[i]);
  return g;
}

// sum w (x - scale (code - 8))^2
double objective(const float* x, const Group& g, const std::uint8_t* codes, float scale) {
  double sum = 0;
  for (int i = 0; i < g.vectors * kLanes; ++i) {
    const double e = x[i] - static_cast<double>(scale) * (codes[i] - 8);
    sum += g.w[i / kLanes][i % kLanes] * e * e;
  }
  return sum;
}

std::uint16_t search_group(const float* x, int n, std::uint8_t* codes) {
  const std::uint16_t rtn = quantise_group(x, n, codes);
  const float rtn_scale = half_to_float(rtn);
  if (rtn_scale == 0 || !std::isfinite(rtn_scale)) return rtn;
  float largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  const Group g = normalise(x, n, largest);
  const double rtn_error = objective(x, g, codes, rtn_scale);

  Sums best{0, 0};
  for (const float t : kGrid)
    for (const float inverse : {t, -t}) {
      const Sums s = g.sums(inverse);
      if (s.gain() > best.gain()) best = s;
    }
  // Best scale and nearest codes in turn: each step lowers the error, but for the rounding to fp16.
  std::uint16_t found = rtn;
  for (int step = 0; step < 4; ++step) {
    const std::uint16_t next = float_to_half(best.yq / best.qq * largest);
    const float scale = half_to_float(next);
    if (next == found || scale == 0 || !std::isfinite(scale)) break;
    found = next;
    best = g.sums(largest / scale);
  }
  const float scale = half_to_float(found);
  std::uint8_t trial[kMaxVectors * kLanes];
  for (int i = 0; i < g.vectors; ++i) {
    Floats q;
    g.nearest(i, largest / scale, q);
    for (int j = 0; j < kLanes; ++j) trial[i * kLanes + j] = static_cast<std::uint8_t>(q[j] + 8);
  }
  if (objective(x, g, trial, scale) >= rtn_error) return rtn;
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
