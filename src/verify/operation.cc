#include "verify/operation.h"

#include <algorithm>
#include <bit>

#include "verify/buffer.h"

namespace nibble::verify {
namespace {

constexpr std::int64_t kPadding = 3;  // floats between two rows of y, which nobody may touch

std::vector<float> gather(const std::vector<float>& from, const std::vector<int>& rows,
                          std::int64_t k) {
  std::vector<float> v;
  for (const int r : rows) v.insert(v.end(), from.begin() + r * k, from.begin() + (r + 1) * k);
  return v;
}

std::string difference(const Run& r, const char* name, std::int64_t row, const float* got,
                       const float* want, std::int64_t n) {
  std::int64_t i = 0;
  while (i < n && same_bits(got + i, want + i, 1)) ++i;
  if (i == n) return {};
  return fmt::format("{}: {}[{}, {}] is {} ({:08x}), expected {} ({:08x})", r.what, name, row,
                     r.first + i, got[i], std::bit_cast<std::uint32_t>(got[i]), want[i],
                     std::bit_cast<std::uint32_t>(want[i]));
}

}  // namespace

Inputs::Inputs(std::int64_t columns, bool offset, std::uint64_t seed)
    : k(columns), unit_offset(offset) {
  const auto count = static_cast<std::size_t>(kRows * k);
  residual = normal_floats(count, seed), delta = normal_floats(count, seed + 1);
  weight = normal_floats(static_cast<std::size_t>(k), seed + 2, 0.2f);
  if (!unit_offset)
    for (float& g : weight) g += 1;
  for (std::int64_t i = 0; i < k; ++i)
    for (auto* v : {&residual, &delta}) {
      (*v)[static_cast<std::size_t>((kRows - 1) * k + i)] *= 1e5f;
      (*v)[static_cast<std::size_t>((kRows - 2) * k + i)] *= 1e-3f;
    }
}

Outputs execute(const Run& r) {
  const Inputs& in = *r.in;
  const auto m = static_cast<std::int64_t>(r.rows.size()), k = in.k, n = r.w->format().n,
             pitch = n + kPadding;
  const std::vector<float> residual = gather(in.residual, r.rows, k),
                           delta = gather(in.delta, r.rows, k);
  Backend& b = *r.backend;
  Buffer res(b, residual), add(b, delta), weight(b, in.weight);
  Buffer h(b, residual.size()), u(b, residual.size()), y(b, static_cast<std::size_t>(m * pitch));
  const LinearOutput out{r.w, nullptr, y.data(), pitch};
  AddRmsNormLinearArgs args{.residual = res.data(),
                            .delta = add.data(),
                            .weight = weight.data(),
                            .eps = kEps,
                            .unit_offset = in.unit_offset,
                            .residual_out = h.data(),
                            .normed = u.data(),
                            .m = m,
                            .k = k,
                            .activations = r.activations,
                            .plan = r.plan};
  if (!r.twin) args.outputs = {&out, 1};
  b.add_rmsnorm_linear(args);
  if (r.twin) b.linear({u.data(), m, k, r.activations, {&out, 1}});

  require(same_bits(res.copy(), residual) && same_bits(add.copy(), delta) &&
              same_bits(weight.copy(), in.weight),
          "{}: an input was written", r.what);
  Outputs o{{}, h.copy(), u.copy()};
  const std::vector<float> got = y.copy();
  o.y.reserve(static_cast<std::size_t>(m * n));
  for (std::int64_t i = 0; i < m; ++i) {
    const float* row = got.data() + i * pitch;
    for (std::int64_t j = n; j < pitch; ++j)
      require(std::bit_cast<std::uint32_t>(row[j]) == 0xffffffffu,
              "{}: the padding of y was written, row {} column {}", r.what, i, j);
    o.y.insert(o.y.end(), row, row + n);
  }
  return o;
}

std::string compare(const Run& r, const Outputs& want, std::int64_t n) {
  Outputs got;
  try {
    got = execute(r);
  } catch (const Error& e) {
    return e.what();
  }
  const std::int64_t mine = r.w->format().n, k = r.in->k;
  for (std::size_t p = 0; p < r.rows.size(); ++p) {
    const auto at = static_cast<std::int64_t>(p);
    const std::int64_t row = r.rows[p];
    for (const std::string& d :
         {difference(r, "residual_out", row, got.h.data() + at * k, want.h.data() + row * k, k),
          difference(r, "normed", row, got.u.data() + at * k, want.u.data() + row * k, k),
          difference(r, "y", row, got.y.data() + at * mine, want.y.data() + row * n + r.first,
                     mine)})
      if (!d.empty()) return d;
  }
  return {};
}

}  // namespace nibble::verify
