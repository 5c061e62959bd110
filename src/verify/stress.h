// Many calls of the fused operation while its threads are delayed at random: every call must give
// the bits of one undisturbed thread.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "verify/harness.h"

namespace nibble::verify {

struct StressResult {
  std::int64_t calls = 0;
  std::int64_t differing = 0;  // calls of which any bit differed
  std::string first;           // the first difference; empty: none
};

// threads: those of the disturbed backend. progress(fraction) is called now and then.
StressResult stress(const Case& c, Activations activations, int threads, std::int64_t calls,
                    const std::function<void(double)>& progress);

}  // namespace nibble::verify
