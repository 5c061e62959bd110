// Runs CUDA kernels on the host, so that their logic is tested where there is no GPU: the same .cu
// sources, compiled by a C++ compiler. A thread of a block is a fiber that runs until it waits for
// its warp or its block. Which block, warp and lane goes first is up to the schedule, so that a
// result which depends on an order differs between schedules. Shared memory is filled with NaN
// before each block, is as large as the launch said (AddressSanitizer sees a byte more), and
// cp.async copies nothing before it is waited for. x86-64 only; one host thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace nibble::emulate {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

// Calls body() on every thread of every block. schedule 0: one block after the other, ascending; 1:
// descending; others: a shuffle of its own, with up to 4 blocks side by side, whose warps and lanes
// take turns at random. Throws Error when threads wait for ever (a barrier that not all reach), and
// what body() throws. cluster: so many neighbours along x lie side by side.
void run(int schedule, Dim grid, unsigned threads, std::size_t shared,
         const std::function<void()>& body, unsigned cluster = 1);

// Of the thread that runs.
struct Place {
  Dim thread, block, block_dim, grid;
};
const Place& place();
char* shared_memory();
void block_sync();
void warp_sync();
void cluster_arrive();
void cluster_wait();
// Where `at`, in this block's shared memory, lies in that of block `rank` of its cluster. Throws
// Error where that one has not arrived yet or has left.
void* remote(const void* at, int rank);
// Until a count that other threads add to has come to `least`.
void await_count(const std::uint64_t* count, std::uint64_t least);
// 8 bytes of shared memory: a phase ends when `count` have arrived.
void barrier_init(void* barrier, int count);
void barrier_arrive(void* barrier);
void barrier_wait(void* barrier, int parity);  // until the phase of this parity has ended
// Every lane gives `words` (up to 12) 32-bit words and sees those of all 32: [lane][12].
const std::uint32_t (*exchange(const std::uint32_t* words, int n))[12];
void copy_async(void* shared, const void* global, unsigned bytes);
void copy_async_commit();
void copy_async_wait(int groups_left);  // at most so many of the latest groups may be under way

}  // namespace nibble::emulate
