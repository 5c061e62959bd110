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

}  // namespace nibble::NIBBLE_CUDA_NS
