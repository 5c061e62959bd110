#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/cpu/kernels.h"

namespace nibble::cpu {
namespace {

// VNNI on 256-bit registers, which compilers of this age have no name for.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

// The matrix unit with 8-bit integers; its registers are the kernel's to grant, for good.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d >> 24 & 3) != 3) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h, arch/x86/xstate
  static const bool granted = ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

// AMD's family 26 (Zen 5) and later.
bool is_zen5() {
  unsigned most = 0, a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(0, &most, &b, &c, &d) == 0 || b != 0x68747541) return false;  // "Auth"entic AMD
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (a >> 8 & 15) + (a >> 20 & 255) >= 26;
}

constexpr const char* kNames[kIsaCount] = {"scalar", "avx2",        "avx-vnni",
                                           "avx512", "avx512-vnni", "amx-int8"};

Kernels with(void (*some)(Kernels&), Kernels others, Isa isa) {
  others.name = isa_name(isa);
  some(others);
  return others;
}

}  // namespace

bool first_cache_streams() {
  static const bool does = is_zen5();
  return does;
}

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
    case Isa::AmxInt8:
      return isa_supported(Isa::Avx512Vnni) && has_amx();
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
    case Isa::AmxInt8: {
      static const Kernels table = with(amx_wide, kernels(Isa::Avx512Vnni), isa);
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
