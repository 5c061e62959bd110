// CUDA backends whose kernels the emulator runs (src/backend/cuda/emulate).
#pragma once
#include <memory>
#include <vector>

#include "backend/backend.h"

namespace nibble {

// With few and many blocks a launch, each in an order of its own: ascending, descending, shuffled.
std::vector<std::unique_ptr<Backend>> emulated_backends();
// blocks 1: of a device with little shared memory, which takes other variants of kernels.
// measures: plans, by the emulator's time.
std::unique_ptr<Backend> emulated_backend(int blocks, int schedule, bool measures = false);

// The published in-place form (src/backend/cuda/adversary.h): of `launches`, how many are corrupt.
int emulated_published(const WeightSource& w, std::span<const float> residual,
                       std::span<const float> delta, int launches, bool in_place, int schedule);

}  // namespace nibble
