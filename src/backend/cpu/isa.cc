#include "backend/cpu/kernels.h"

namespace nibble::cpu {

bool isa_supported(Isa isa) {
  switch (isa) {
    case Isa::Scalar:
      return true;
    case Isa::Avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::Avx512Vnni:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
}

const Kernels& kernels(Isa isa) {
  require(isa_supported(isa), "this CPU lacks the instruction set asked for");
  switch (isa) {
    case Isa::Avx512Vnni:
      return avx512vnni_kernels();
    case Isa::Avx2:
      return avx2_kernels();
    default:
      return scalar_kernels();
  }
}

Isa best_isa() {
  for (const Isa isa : {Isa::Avx512Vnni, Isa::Avx2})
    if (isa_supported(isa)) return isa;
  return Isa::Scalar;
}

}  // namespace nibble::cpu
