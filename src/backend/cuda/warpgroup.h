// What the kernels for Hopper use beyond device.h: matrix instructions of four warps, whose B is
// 128 bytes a row in shared memory, 16 bytes c of row n at c ^ n % 8 (the 128-byte swizzle; the
// tile begins at a multiple of 1024).
#pragma once
#ifdef __CUDACC__
#include "backend/cuda/ptx/warpgroup.cuh"
#else
#include "backend/cuda/emulate/warpgroup.h"
#endif
