// How backend.cc reaches the CUDA backend, built or not.
#pragma once
#ifndef NIBBLE_CUDA_NS
#define NIBBLE_CUDA_NS cuda
#endif
#include <initializer_list>
#include <memory>

#include "backend/backend.h"

namespace nibble::NIBBLE_CUDA_NS {

inline constexpr const char* kDevice = "cuda";
bool built();
// Throws Error saying why there is none: not in this build, no driver, no GPU, too old a GPU. It
// measures which plan of a product is faster when it first meets a shape; schedules do not.
std::unique_ptr<Backend> make(int threads);
// Backends of one device that differ in the blocks of a launch over tiles: the device's own choice,
// then these. Weights packed by one serve all.
std::vector<std::unique_ptr<Backend>> make_schedules(std::initializer_list<int> blocks = {
                                                         1, 7, 66, 132, 1000});

}  // namespace nibble::NIBBLE_CUDA_NS
