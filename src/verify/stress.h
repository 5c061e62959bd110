// Many calls of the fused operation while its threads are delayed at random: every call must give
// the bits of one undisturbed thread.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "verify/harness.h"

namespace nibble::verify {

struct StressResult {
  std::int64_t calls = 0;
  std::int64_t differing = 0;  // calls, or chains of calls, of which any bit differed
  std::string first;           // the first difference; empty: none
};

// threads: those of the disturbed backend. progress(fraction) is called now and then.
StressResult stress(const Case& c, Activations activations, int threads, std::int64_t calls,
                    const std::function<void(double)>& progress);

// The same on a device, by chains of calls without a wait between them: the residual ping-pongs
// between two buffers, of 1 row mostly and of 8 in every eighth chain, by turns on each schedule
// (of one device: weights of the first serve all) and in each plan. Every y must have the CPU's
// bits, and the residual at the chain's end. Who delays its blocks is up to the caller.
StressResult stress(const Case& c, Activations activations,
                    std::span<const std::unique_ptr<Backend>> schedules, std::int64_t calls,
                    const std::function<void(double)>& progress);

}  // namespace nibble::verify
