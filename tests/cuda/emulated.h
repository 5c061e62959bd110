// CUDA backends whose kernels the emulator runs (src/backend/cuda/emulate).
#pragma once
#include <memory>
#include <vector>

#include "backend/backend.h"

namespace nibble {

// With few and many blocks a launch, each in an order of its own: ascending, descending, shuffled.
std::vector<std::unique_ptr<Backend>> emulated_backends();
// blocks 1: of a device with little shared memory, which takes other variants of kernels.
std::unique_ptr<Backend> emulated_backend(int blocks, int schedule);

}  // namespace nibble
