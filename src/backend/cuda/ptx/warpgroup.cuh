// The real half of warpgroup.h (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions").
#pragma once
#include "backend/cuda/ptx/device.cuh"

// Only sm_90a has these instructions; for others the kernels are empty, and are not launched.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define NIBBLE_HAS_WARPGROUPS 1
#endif

namespace nibble::NIBBLE_CUDA_NS {

template <int Bytes>  // 4 or 8
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "n"(Bytes)
               : "memory");
}

#ifdef NIBBLE_HAS_WARPGROUPS
// What this thread wrote to shared memory is there for matrix instructions after the next barrier.
__device__ __forceinline__ void show_to_warpgroups() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// A barrier in shared memory (8 bytes) that threads pass at different times: its phases end when
// `count` have arrived, and barrier_wait() returns once the phase of that parity has.
__device__ __forceinline__ void barrier_init(void* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier))),
               "r"(count)
               : "memory");
}
__device__ __forceinline__ void barrier_arrive(void* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier)))
               : "memory");
}
__device__ __forceinline__ void barrier_wait(void* barrier, int parity) {
  asm volatile(
      "{.reg .pred p; again%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra "
      "again%=;}" ::"r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier))),
      "r"(parity)
      : "memory");
}
// Before the first of a batch: registers are as they were written.
__device__ __forceinline__ void warpgroup_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

#define NIBBLE_C8(i)                                                                          \
  "+r"(c[i]), "+r"(c[i + 1]), "+r"(c[i + 2]), "+r"(c[i + 3]), "+r"(c[i + 4]), "+r"(c[i + 5]), \
      "+r"(c[i + 6]), "+r"(c[i + 7])
#define NIBBLE_C16 NIBBLE_C8(0), NIBBLE_C8(8)
#define NIBBLE_C24 NIBBLE_C16, NIBBLE_C8(16)
#define NIBBLE_C32 NIBBLE_C24, NIBBLE_C8(24)
#define NIBBLE_L8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define NIBBLE_L16 NIBBLE_L8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define NIBBLE_L24 NIBBLE_L16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define NIBBLE_L32 NIBBLE_L24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define NIBBLE_WGMMA(n, type, list, inputs, add_first, ...)                            \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " add_first                              \
               ", 0; wgmma.mma_async.sync.aligned.m64n" n "k32.s32." type ".s8 {" list \
               "}, " inputs ", p;}"                                                    \
               : __VA_ARGS__                                                           \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add ? 1 : 0))
#define NIBBLE_WGMMAS(type)                                                            \
  if constexpr (Octets == 2)                                                           \
    NIBBLE_WGMMA("16", type, NIBBLE_L8, "{%8,%9,%10,%11}, %12", "%13", NIBBLE_C8(0));  \
  else if constexpr (Octets == 4)                                                      \
    NIBBLE_WGMMA("32", type, NIBBLE_L16, "{%16,%17,%18,%19}, %20", "%21", NIBBLE_C16); \
  else if constexpr (Octets == 6)                                                      \
    NIBBLE_WGMMA("48", type, NIBBLE_L24, "{%24,%25,%26,%27}, %28", "%29", NIBBLE_C24); \
  else                                                                                 \
    NIBBLE_WGMMA("64", type, NIBBLE_L32, "{%32,%33,%34,%35}, %36", "%37", NIBBLE_C32)

// What tells the instructions where B lies: 1 more is 16 bytes further on.
__device__ __forceinline__ std::uint64_t swizzled(const char* bytes) {
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(bytes));
  constexpr std::uint64_t kSwizzle = std::uint64_t{1} << 62, kEightRows = std::uint64_t{64} << 32;
  return kSwizzle | kEightRows | 1u << 16 | (at & 0x3ffff) >> 4;
}
// c [64, 8 Octets] = A B^T, or += (add): A of this warp's 16 rows in the fragments of mma.m16n8k32
// (U: u8, else s8), B 8 Octets rows of 32 signed bytes from `bytes` on. c as of mma, 4 an octet.
// Neither a nor c may be touched before warpgroup_end().
template <bool U, int Octets>
__device__ __forceinline__ void warpgroup_mma(int (&c)[4 * Octets], std::uint32_t a0,
                                              std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                                              const char* bytes, bool add) {
  static_assert(Octets == 2 || Octets == 4 || Octets == 6 || Octets == 8);
  const std::uint64_t b = swizzled(bytes);
  if constexpr (U) {
    NIBBLE_WGMMAS("u8");
  } else {
    NIBBLE_WGMMAS("s8");
  }
}
#undef NIBBLE_C8
#define NIBBLE_C8(i)                                                                          \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), \
      "+f"(c[i + 6]), "+f"(c[i + 7])
#define NIBBLE_C64 NIBBLE_C32, NIBBLE_C8(32), NIBBLE_C8(40), NIBBLE_C8(48), NIBBLE_C8(56)
#define NIBBLE_C80 NIBBLE_C64, NIBBLE_C8(64), NIBBLE_C8(72)
#define NIBBLE_L64                                \
  NIBBLE_L32                                      \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42," \
  "%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NIBBLE_L80 \
  NIBBLE_L64       \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define NIBBLE_WGMMA_HALF(n, list, inputs, add_first, ...)                                      \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " add_first                                       \
               ", 0; wgmma.mma_async.sync.aligned.m64n" n "k16.f32.f16.f16 {" list "}, " inputs \
               ", p, 1, 1, 0;}"                                                                 \
               : __VA_ARGS__                                                                    \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add ? 1 : 0))

// The same in fp16, b of swizzled(), with c in fp32: A in the fragments of mma.m16n8k16, B 8 Octets
// rows of 16 halves.
template <int Octets>
__device__ __forceinline__ void warpgroup_mma_half(float (&c)[4 * Octets], std::uint32_t a0,
                                                   std::uint32_t a1, std::uint32_t a2,
                                                   std::uint32_t a3, std::uint64_t b, bool add) {
  static_assert(Octets == 2 || Octets == 4 || Octets == 8 || Octets == 16 || Octets == 20);
  if constexpr (Octets == 2)
    NIBBLE_WGMMA_HALF("16", NIBBLE_L8, "{%8,%9,%10,%11}, %12", "%13", NIBBLE_C8(0));
  else if constexpr (Octets == 4)
    NIBBLE_WGMMA_HALF("32", NIBBLE_L16, "{%16,%17,%18,%19}, %20", "%21", NIBBLE_C16);
  else if constexpr (Octets == 8)
    NIBBLE_WGMMA_HALF("64", NIBBLE_L32, "{%32,%33,%34,%35}, %36", "%37", NIBBLE_C32);
  else if constexpr (Octets == 16)
    NIBBLE_WGMMA_HALF("128", NIBBLE_L64, "{%64,%65,%66,%67}, %68", "%69", NIBBLE_C64);
  else
    NIBBLE_WGMMA_HALF("160", NIBBLE_L80, "{%80,%81,%82,%83}, %84", "%85", NIBBLE_C80);
}
__device__ __forceinline__ void hold_all(int& x) { asm volatile("" : "+r"(x)::"memory"); }
__device__ __forceinline__ void hold_all(float& x) { asm volatile("" : "+f"(x)::"memory"); }
// Waits for all of this warpgroup's products.
template <class T, int N>
__device__ __forceinline__ void warpgroup_end(T (&c)[N]) {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < N; ++i) hold_all(c[i]);
}
#endif

}  // namespace nibble::NIBBLE_CUDA_NS
