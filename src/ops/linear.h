// linear: y = W x (+ bias), for one or several weight matrices that share the input.
//
//   x   fp32 [M, K]          rounded once to the activation mode, per row and block of 64 columns
//   W   [N, K], any WeightType, packed by the backend
//   y   fp32 [M, N]
// Epilogue SwiGlu takes exactly two matrices (gate, up) of equal shape and writes
// y0 = silu(gate x) * (up x), [M, N]; y1 is unused.
// Plain weights (F16, BF16, F32) always take x in fp32.
// Bits depend on (W, x row, activation mode) alone: not on M, the row's place, threads or schedule.
// Aliasing: no y may overlap x, a bias or another y (checked).
#pragma once
#include <cstdint>
#include <memory>
#include <span>

#include "int4/weight.h"
#include "ops/activations.h"

namespace nibble {

// A weight matrix in the order a backend's kernels stream. Immutable once packed.
class Weight {
 public:
  virtual ~Weight() = default;
  const WeightFormat& format() const { return format_; }
  int pieces() const { return pieces_; }          // ops/pieces.h
  std::int64_t stack() const { return stack_; }   // matrices, each of format().n / stack() rows
  std::uint64_t bytes() const { return bytes_; }  // as kept

 protected:
  Weight(const WeightFormat& f, int pieces, std::int64_t stack = 1)
      : format_(f), pieces_(pieces), stack_(stack) {}
  WeightFormat format_;
  int pieces_;
  std::int64_t stack_;
  std::uint64_t bytes_ = 0;
};

struct LinearOutput {
  const Weight* w = nullptr;
  const float* bias = nullptr;  // [N] or null
  float* y = nullptr;           // [M, ldy]
  std::int64_t ldy = 0;         // row pitch of y, >= N
};

enum class Epilogue : std::uint8_t { None, SwiGlu };

struct LinearArgs {
  const float* x = nullptr;  // [M, K]
  std::int64_t m = 0, k = 0;
  Activations activations = Activations::Int16;
  std::span<const LinearOutput> outputs;  // 1 to 4
  Epilogue epilogue = Epilogue::None;
};

// Throws Error "[linear] expected ..., got ..." for a wrong shape or an alias.
void check(const LinearArgs& a);

// Double-precision reference of one matrix: w dequantised [N, K]. y and magnitude are [M, N];
// magnitude = sum |w x| (+ |bias|), the unit of every error bound.
void linear_reference(const double* x, std::int64_t m, std::int64_t k, const float* w,
                      std::int64_t n, const float* bias, double* y, double* magnitude);

// True when [a, a + an) and [b, b + bn) share a byte; null never does.
bool overlap(const void* a, std::size_t an, const void* b, std::size_t bn);

}  // namespace nibble
