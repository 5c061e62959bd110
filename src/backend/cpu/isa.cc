#include <cpuid.h>

#include "backend/cpu/kernels.h"

namespace nibble::cpu {
namespace {

// VNNI on 256-bit registers, which compilers of this age have no name for.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

using Table = const Kernels& (*)();
constexpr Table kTables[kIsaCount] = {scalar_kernels, avx2_kernels, avxvnni_kernels, avx512_kernels,
                                      avx512vnni_kernels};
constexpr const char* kNames[kIsaCount] = {"scalar", "avx2", "avx-vnni", "avx512", "avx512-vnni"};

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
  return kTables[static_cast<int>(isa)]();
}

Isa best_isa() {
  int best = kIsaCount - 1;
  while (!isa_supported(static_cast<Isa>(best))) --best;
  return static_cast<Isa>(best);
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

}  // namespace nibble::cpu
