// gemv.cuh's kernels for groups of 32 columns, two a stage: what Q4_0 files have.
#include "backend/cuda/gemv.cuh"

namespace nibble::NIBBLE_CUDA_NS {

template GemvKernel kernel_of<1, 2>(int, Rows, bool, bool);
template GemvKernel kernel_of<2, 2>(int, Rows, bool, bool);

}  // namespace nibble::NIBBLE_CUDA_NS
