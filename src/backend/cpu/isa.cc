#include <cpuid.h>

#include "backend/cpu/kernels.h"

namespace nibble::cpu {
namespace {

// VNNI on 256-bit registers, which compilers of this age have no name for.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

constexpr const char* kNames[kIsaCount] = {"scalar", "avx2", "avx-vnni", "avx512", "avx512-vnni"};

Kernels with(void (*dots)(Kernels&), Kernels lanes, Isa isa) {
  lanes.name = isa_name(isa);
  dots(lanes);
  return lanes;
}

}  // namespace

bool isa_supported(Isa isa) {
  switch (isa) {
    case Isa::Scalar:
      return true;
    case Isa::Avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::AvxVnni:
      return isa_supported(Isa::Avx2) && has_avxvnni();
    case Isa::Avx512:
      return isa_supported(Isa::Avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Isa::Avx512Vnni:
      return isa_supported(Isa::Avx512) && __builtin_cpu_supports("avx512vnni");
  }
  return false;
}

const Kernels& kernels(Isa isa) {
  require(isa_supported(isa), "this CPU has no {}", isa_name(isa));
  switch (isa) {
    case Isa::Scalar:
      break;
    case Isa::Avx2:
      return avx2_kernels();
    case Isa::AvxVnni: {
      static const Kernels table = with(avxvnni_dots, avx2_kernels(), isa);
      return table;
    }
    case Isa::Avx512:
      return avx512_kernels();
    case Isa::Avx512Vnni: {
      static const Kernels table = with(avx512vnni_dots, avx512_kernels(), isa);
      return table;
    }
  }
  return scalar_kernels();
}

Isa best_isa() {
  int best = kIsaCount - 1;
  while (!isa_supported(static_cast<Isa>(best))) --best;
  return static_cast<Isa>(best);
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

}  // namespace nibble::cpu
