// The safetensors container: 8 bytes of header length, a JSON header, the data.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace nibble {

struct StoredTensor {
  std::string name;
  DType dtype = DType::F32;
  std::vector<std::int64_t> shape;  // outermost first; at most 8 dimensions
  std::span<const std::byte> data;  // product(shape) * dtype_size bytes inside the file
};

// All tensors of a file, in the order of their data, validated as the format demands: header of at
// most 100 MB, no name twice, shapes that do not overflow and fit their bytes, and data that covers
// the file without overlap or gap. Error naming `where` and the tensor. `file` must outlive the
// result.
std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> file,
                                            std::string_view where);

}  // namespace nibble
