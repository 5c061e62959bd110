// The one harness of the operations: guarded and poisoned buffers, random weights of any type, and
// the list of schedules (instruction sets, thread counts) whose bits must agree.
#pragma once
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "base/half.h"

namespace nibble::harness {

// n values that end at an unreadable page and begin after one (rounded down to 64 bytes); filled
// with NaN, so that an element nobody wrote or read by mistake shows.
class Guarded {
 public:
  explicit Guarded(std::size_t n) : n_(n) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    bytes_ = (n * sizeof(float) + page - 1) / page * page + 2 * page;
    base_ = static_cast<char*>(
        ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ::mprotect(base_, page, PROT_NONE);
    ::mprotect(base_ + bytes_ - page, page, PROT_NONE);
    data_ = reinterpret_cast<float*>(base_ + bytes_ - page) - n;
    poison();
  }
  Guarded(const std::vector<float>& v) : Guarded(v.size()) {
    std::memcpy(data_, v.data(), n_ * sizeof(float));
  }
  ~Guarded() { ::munmap(base_, bytes_); }
  Guarded(const Guarded&) = delete;
  void poison() { std::memset(data_, 0xff, n_ * sizeof(float)); }
  float* data() { return data_; }
  std::vector<float> copy() const { return {data_, data_ + n_}; }

 private:
  std::size_t n_, bytes_;
  char* base_;
  float* data_;
};

// A weight matrix of random codes and scales (negative ones too), or of given rows.
class RandomWeight final : public WeightSource {
 public:
  RandomWeight(WeightType type, std::int64_t n, std::int64_t k, int group, unsigned seed,
               bool scales_f16 = true)
      : WeightSource("random", {type, n, k, is_quantised(type) ? group : 0, scales_f16}) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    const auto count = static_cast<std::size_t>(n * k);
    const auto groups = static_cast<std::size_t>(n * format_.groups());
    if (is_quantised(type)) {
      rows_.codes.resize(count);
      for (auto& c : rows_.codes)
        c = static_cast<std::uint8_t>(type == WeightType::Int8 ? rng() & 255 : rng() & 15);
      const auto scale = [&](float s) { return scales_f16 ? half_to_float(float_to_half(s)) : s; };
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
        if (type == WeightType::F16) v = half_to_float(float_to_half(v));
        if (type == WeightType::BF16) v = bf16_to_float(float_to_bf16(v));
      }
    }
  }
  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override {
    const auto cut = [&](const auto& in, auto& to, std::int64_t width) {
      if (in.empty()) return to.clear();
      to.assign(in.begin() + row * width, in.begin() + (row + count) * width);
    };
    cut(rows_.codes, out.codes, format_.k), cut(rows_.values, out.values, format_.k);
    cut(rows_.scales, out.scales, format_.groups()),
        cut(rows_.offsets, out.offsets, format_.groups());
  }

 private:
  WeightRows rows_;
};

inline std::vector<float> random_floats(std::size_t n, unsigned seed, float scale = 1) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

// Error bounds of docs/design.md in units of sum |w x|.
inline double bound(Activations a, WeightType t) {
  if (a == Activations::Fp32 || !is_quantised(t)) return 1e-5;
  return a == Activations::Int16 ? 2e-4 : 5e-3;
}

// Every instruction set of this machine times a few thread counts; [0] is the scalar, one thread.
inline std::vector<std::unique_ptr<cpu::CpuBackend>>& backends() {
  static auto all = [] {
    std::vector<std::unique_ptr<cpu::CpuBackend>> v;
    for (int isa = 0; isa < cpu::kIsaCount; ++isa)
      if (cpu::isa_supported(static_cast<cpu::Isa>(isa)))
        for (const int threads : {1, 3})
          v.push_back(std::make_unique<cpu::CpuBackend>(threads, static_cast<cpu::Isa>(isa)));
    v.push_back(std::make_unique<cpu::CpuBackend>(8, cpu::best_isa()));
    return v;
  }();
  return all;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace nibble::harness
