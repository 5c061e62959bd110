// What `nibble verify` sets against the fused operation on a device: the published form beside it,
// and others' work on the same multiprocessors.
#pragma once
#ifndef NIBBLE_CUDA_NS
#define NIBBLE_CUDA_NS cuda
#endif
#include <cstdint>
#include <memory>
#include <span>

#include "int4/weight.h"

namespace nibble::NIBBLE_CUDA_NS {

// Launches of the published form (published.cu) on one row of input.
struct PublishedCount {
  int launches = 0, corrupt = 0;  // corrupt: any bit of y is not what it is out of place
  std::int64_t rows_wrong = 0;    // of all launches
};
// w: Int4, N rows of K columns; residual, delta [K], norm weights 1. in_place: as published; else
// the sum goes elsewhere, which corrupts nothing. schedule: the emulator's order of blocks.
PublishedCount count_published(const WeightSource& w, std::span<const float> residual,
                               std::span<const float> delta, int launches, bool in_place,
                               int schedule = 0);

// While it lives, a thread of its own keeps putting blocks that hold some of the device's
// multiprocessors, for 1 to 30 us each, into a stream of its own: random numbers of a seed.
class Crowd {
 public:
  explicit Crowd(std::uint64_t seed);
  ~Crowd();
  std::int64_t launches() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::NIBBLE_CUDA_NS
