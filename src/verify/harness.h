// The one harness of the operations, shared by the tests and `nibble verify`: the schedules whose
// bits must agree, the error bounds, and the check of one shape of the fused operation.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "verify/guarded.h"
#include "verify/perturbed.h"
#include "verify/weights.h"

namespace nibble::verify {

// Error bounds of docs/design.md in units of sum |w x|. Below 128 columns eight bits have too few
// roundings to average: the bound grows as their mean does.
inline double bound(Activations a, WeightType t, std::int64_t k) {
  if (a == Activations::Fp32 || !is_quantised(t)) return 1e-5;
  if (a == Activations::Int16) return 2e-4;
  if (a == Activations::Half) return 1e-3;
  return 5e-3 * std::sqrt(std::max(1.0, 128.0 / static_cast<double>(k)));
}

// Every instruction set of this machine times a few thread counts; [0] is the scalar, one thread.
// Their weights lie between unreadable pages.
std::vector<std::unique_ptr<cpu::CpuBackend>>& backends();

// One shape of the fused operation: y = W rmsnorm(residual + delta), M = 1..8.
struct Case {
  std::int64_t n = 0, k = 0;
  WeightType type = WeightType::Int4;
  int group = 128;  // 0 for plain types
  int pieces = 1;   // ops/pieces.h
};

// What was found for a case in one activation mode.
struct Row {
  Case shape;
  Activations activations = Activations::Int16;
  double weight_error = 0;   // relative RMS error of y against weights that were not quantised
  double worst = 0;          // the worst element against the double reference on the dequantised
  double bound = 0;          // weights, and what it may be, in units of sum |w x|
  int runs = 0;              // operations whose bits were compared
  std::string note = {};     // what was not run in full
  std::string failure = {};  // the first difference; empty: all is well
};

// Runs cases on every schedule. Every input and output lies in a guarded, poisoned buffer.
class Harness {
 public:
  // tested: the table of kernels that is checked, against the other instruction sets.
  explicit Harness(const cpu::Kernels& tested = cpu::kernels(cpu::best_isa()));
  // tested: schedules of one device, which share weights; against the CPU's best and scalar sets.
  explicit Harness(std::vector<std::unique_ptr<Backend>> tested);
  ~Harness();
  // One row an activation mode; plain types have fp32 only.
  std::vector<Row> check(const Case& c, const std::vector<Activations>& modes);
  // Bytes that check() needs at most.
  static std::uint64_t memory(const Case& c);
  std::string describe() const;  // the schedules, for a heading

 private:
  ThreadPool pool_;                                  // for the reference
  std::vector<std::unique_ptr<Backend>> schedules_;  // CPU: 2, 1, 3, 5, 8 threads
  std::vector<std::unique_ptr<Backend>> others_;     // other instruction sets, 2 threads
  std::unique_ptr<Backend> adversary_;               // FirstThenOthers, 5 threads; or null
};

}  // namespace nibble::verify
