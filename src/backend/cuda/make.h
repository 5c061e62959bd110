// How backend.cc reaches the CUDA backend, built or not.
#pragma once
#ifndef NIBBLE_CUDA_NS
#define NIBBLE_CUDA_NS cuda
#endif
#include <memory>

#include "backend/backend.h"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr const char* kDevice = "cuda";
bool built();
// Throws Error saying why there is none: not in this build, no driver, no GPU, too old a GPU.
std::unique_ptr<Backend> make(int threads);
// Backends of one device that differ in the blocks of a launch over tiles: the device's own choice,
// then 1, 7, 66, 132 and more. Weights packed by one serve all.
std::vector<std::unique_ptr<Backend>> make_schedules();

}  // namespace nibble::NIBBLE_CUDA_NS
