// What the tests of operations take from the harness (src/verify).
#pragma once
#include <gtest/gtest.h>

#include "backend/cuda/make.h"
#include "cuda/emulated.h"
#include "verify/buffer.h"
#include "verify/harness.h"

namespace nibble::harness {

using verify::bound;
using verify::Buffer;
using verify::Guarded;
using verify::RandomWeight;
using verify::same_bits;

// Those of the CPU ([0]: scalar, one thread; the last: the best set), and between them the CUDA
// kernels as the emulator runs them: few and many blocks, in several orders; and as a device does,
// where there is one. All give the same bits.
inline std::vector<std::unique_ptr<Backend>>& backends() {
  static auto all = [] {
    std::vector<std::unique_ptr<Backend>> v;
    for (auto& b : verify::backends()) v.push_back(std::move(b));
    for (auto& b : emulated_backends()) v.insert(v.end() - 1, std::move(b));
    try {
      v.insert(v.end() - 1, cuda::make(1));
    } catch (const Error&) {  // no device
    }
    return v;
  }();
  return all;
}

// The CPU's best set, and the device or, without one, an emulated one.
inline std::vector<Backend*> last_two() {
  auto& all = backends();
  return {all.back().get(), all[all.size() - 2].get()};
}

inline std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }
inline std::vector<float> random_floats(std::size_t n, unsigned seed, float scale = 1) {
  return verify::normal_floats(n, seed, scale);
}

}  // namespace nibble::harness
