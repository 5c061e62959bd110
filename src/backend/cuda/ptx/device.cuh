// The real half of device.h: inline PTX and intrinsics, under the names the emulator gives them.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/ptx/trace.cuh"

namespace nibble::NIBBLE_CUDA_NS {

__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(128) char block_memory[];
  return block_memory;
}
// threadIdx.x, read anew: what is kept of it for long may end in local memory instead.
__device__ __forceinline__ unsigned thread_again() {
  unsigned x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}
__device__ __forceinline__ int block_again() {
  int x;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
  return x;
}
__device__ __forceinline__ void block_sync() { __syncthreads(); }
__device__ __forceinline__ void warp_sync() { __syncwarp(); }

// Launches overlap where the device can (Hopper on): start_next() lets the next launch's blocks
// come while this one runs; await_last(), in every thread of every kernel, before anything that
// another launch writes is read and before anything is written, waits until the launch before is
// complete. That one did the same, so all before it are. What nobody writes (weights) may be read
// earlier.
__device__ __forceinline__ void let_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void start_next(bool now = true) {  // if not now, let_next() follows
  trace_start();
  if (now) let_next();
}
__device__ __forceinline__ void await_last() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  trace_awaited();
}
template <class T>
__device__ __forceinline__ T shuffle(T x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
__device__ __forceinline__ int warp_max(int x) { return __reduce_max_sync(0xffffffffu, x); }
__device__ __forceinline__ int warp_add(int x) { return __reduce_add_sync(0xffffffffu, x); }
// The lowest lane where it is so; 32: nowhere. (-warp_max(-lane) in a loop that its value ends
// makes ptxas 13.0.88 compare with the value of the turn before.)
__device__ __forceinline__ int first_lane(bool is) {
  const unsigned all = __ballot_sync(0xffffffffu, is);
  return all != 0 ? __ffs(static_cast<int>(all)) - 1 : 32;
}
__device__ __forceinline__ void spin(int cycles) {
  for (const long long begin = clock64(); clock64() - begin < cycles;) {
  }
}
// For what may be read before await_last(): past the first cache, which may hold an older value.
__device__ __forceinline__ int load_fresh(const int* p) { return __ldcg(p); }
__device__ __forceinline__ float load_fresh(const float* p) { return __ldcg(p); }
__device__ __forceinline__ float4 load_fresh(const float4* p) { return __ldcg(p); }
__device__ __forceinline__ uint4 load_fresh(const uint4* p) { return __ldcg(p); }
// In one store, which the compiler makes four of. to: 16 bytes at a time.
__device__ __forceinline__ void store_four(float* to, const float4& x) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x.x), "f"(x.y), "f"(x.z),
               "f"(x.w)
               : "memory");
}
// Of a cluster's blocks (Hopper on; every thread, in turn): what was stored before arriving, in any
// block's shared memory, is there for all after waiting. A block's memory may be stored to once it
// has arrived, and until it leaves.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// Where `at`, in this block's shared memory, lies in that of block `rank` of the cluster.
__device__ __forceinline__ std::uint32_t remote(const float* at, int rank) {
  const auto here = static_cast<std::uint32_t>(__cvta_generic_to_shared(at));
  std::uint32_t there = here;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
#endif
  return there;
}
// *at = x there.
__device__ __forceinline__ void store_remote(float* at, int rank, float x) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote(at, rank)), "f"(x) : "memory");
#endif
}
__device__ __forceinline__ void store_remote(float* at, int rank, const float4& x) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(remote(at, rank)),
               "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
               : "memory");
#endif
}
// What this thread, and its block before a block_sync(), wrote is there for all before what it
// writes or adds next is; and what it reads next is no older than what it has read.
__device__ __forceinline__ void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
__device__ __forceinline__ int atomic_add(int* p, int x) { return atomicAdd(p, x); }
__device__ __forceinline__ std::uint64_t atomic_add(std::uint64_t* p, int x) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
}
// Waits until a count has come to `least`; what was written before it was added to is there then.
__device__ __forceinline__ void await_count(const std::uint64_t* p, std::uint64_t least) {
  std::uint64_t now;
  do {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(p) : "memory");
  } while (now < least);
}

// 16 bytes, past the first cache: a weight is read once.
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
// Asks the second cache for `bytes` from `global` on, both multiples of 16.
__device__ __forceinline__ void prefetch(const void* global, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
#endif
}
__device__ __forceinline__ void prefetch_line(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global) : "memory");
}
// The same for what no launch reads again: it leaves the second cache first.
struct ReadOnce {
  std::uint64_t policy;
  __device__ __forceinline__ ReadOnce() {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  }
};
__device__ __forceinline__ void copy_async16(void* shared, const void* global, ReadOnce once) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "l"(once.policy)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int Left>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

__device__ __forceinline__ void mma_u8s8(int (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                         std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                         std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_s8s8(int (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                         std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                         std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_f16(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                        std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                        std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// What was loaded stays above: the compiler does not move the load to its use.
__device__ __forceinline__ void hold(float& x) { asm volatile("" : "+f"(x)); }
__device__ __forceinline__ void hold(int& x) { asm volatile("" : "+r"(x)); }
__device__ __forceinline__ void hold(uint4& x) {
  asm volatile("" : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w));
}

__device__ __forceinline__ int float_bits(float x) { return __float_as_int(x); }
__device__ __forceinline__ float bits_float(int i) { return __int_as_float(i); }
__device__ __forceinline__ int round_int(float x) { return __float2int_rn(x); }
__device__ __forceinline__ float from_half(std::uint16_t h) {
  return __half2float(__ushort_as_half(h));
}
// (x & mask) | bits
__device__ __forceinline__ std::uint32_t and_or(std::uint32_t x, std::uint32_t mask,
                                                std::uint32_t bits) {
  asm("lop3.b32 %0, %0, %1, %2, 0xea;" : "+r"(x) : "r"(mask), "r"(bits));
  return x;
}
// Byte `Which` of each, a's lowest.
template <int Which>
__device__ __forceinline__ std::uint32_t four_bytes(int a, int b, int c, int d) {
  const auto two = [](int x, int y) {
    return __byte_perm(static_cast<unsigned>(x), static_cast<unsigned>(y),
                       Which == 0 ? 0x40 : 0x51);
  };
  return __byte_perm(two(a, b), two(c, d), 0x5410);
}
// sum + the signed bytes of a word.
__device__ __forceinline__ int add_bytes(std::uint32_t x, int sum) {
  return __dp4a(static_cast<int>(x), 0x01010101, sum);
}
// Half `which` of a word, twice.
__device__ __forceinline__ std::uint32_t half_twice(std::uint32_t x, int which) {
  return __byte_perm(x, 0, which == 0 ? 0x1010 : 0x3232);
}
// Two halves in a word.
__device__ __forceinline__ std::uint32_t half2_fma(std::uint32_t a, std::uint32_t b,
                                                   std::uint32_t c) {
  asm("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(a) : "r"(b), "r"(c));
  return a;
}
__device__ __forceinline__ std::uint32_t half2_mul(std::uint32_t a, std::uint32_t b) {
  asm("mul.rn.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
__device__ __forceinline__ float from_bf16(std::uint16_t h) {
  return __int_as_float(static_cast<int>(h) << 16);
}
// Two values as fp16 in a word, the first one below.
__device__ __forceinline__ std::uint32_t to_halves(float low, float high) {
  std::uint32_t w;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
  return w;
}
// To 2 units in the last place, results below 2^-126 as 0; exact of 0, -Inf and NaN.
__device__ __forceinline__ float exp2_near(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / x to 1 unit in the last place, 0 of what is Inf or has a result below 2^-126.
__device__ __forceinline__ float reciprocal_near(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace nibble::NIBBLE_CUDA_NS
