// Everything a user of a Checkpoint may ask of it, each answered or refused with an Error.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <utility>

#include "base/error.h"
#include "checkpoint/checkpoint.h"

namespace nibble::fuzz {

// Runs `f`; an Error is an answer, anything else is a finding.
template <class F>
void attempt(F&& f) {
  try {
    std::forward<F>(f)();
  } catch (const Error&) {
  }
}

inline void expect(bool holds) {
  if (!holds) std::abort();
}

inline void read_matrix(const WeightSource& w) {
  const WeightFormat& f = w.format();
  WeightRows rows;
  for (std::int64_t row = 0; row < f.n; row += 7) {
    const std::int64_t count = std::min<std::int64_t>(7, f.n - row);
    w.read(row, count, rows);
    const auto elements = static_cast<std::size_t>(count * f.k);
    const auto groups = static_cast<std::size_t>(count * f.groups());
    expect(rows.codes.size() == (is_quantised(f.type) ? elements : 0));
    expect(rows.values.size() == (is_quantised(f.type) ? 0 : elements));
    expect(rows.scales.size() == groups);
    expect(rows.offsets.size() == (f.type == WeightType::Int4Aff ? groups : 0));
    w.release(row, count);
  }
}

inline void touch(const Checkpoint& c) {
  for (const TensorInfo& t : c.tensors()) {
    constexpr std::int64_t kLarge = 1 << 20;
    std::int64_t size = 1;
    for (const std::int64_t d : t.shape) size = std::min(size * std::min(d, kLarge), kLarge);
    if (size == 0 || size == kLarge) continue;
    if (t.shape.size() == 1) attempt([&] { c.vector(t.name, t.shape[0]); });
    if (t.shape.size() == 2)
      attempt([&] { read_matrix(*c.weight(t.name, t.shape[0], t.shape[1])); });
  }
  attempt([&] { c.tokenizer(); });
  attempt([&] { c.chat_template(); });
  c.notices();
  expect(!c.has(std::string_view("\xff\0", 2)));  // no valid name; a fuzzer learns any that is
}

}  // namespace nibble::fuzz
