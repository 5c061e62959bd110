// compressed-tensors `pack-quantized`: INT4 weights in safetensors. A matrix [N, K] `X.weight` is
//   X.weight_packed      I32 [N, K/8]       code of column 8w+i in bits 4i..4i+3 of word w
//   X.weight_scale       F16|BF16|F32 [N, K/group]   may be negative
//   X.weight_shape       I64|I32 [2] = N, K
//   X.weight_zero_point  I32 [ceil(N/8), K/group], row 8w+i in bits 4i..4i+3 of word w; or
//   unpacked,
//                        I8 [N, K/group], then less 8. Absent when symmetric.
// value = (code - zero) * scale; zero = 8 when symmetric.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/blob.h"
#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"
#include "int4/weight.h"

namespace nibble {

// A stored tensor and the file it lies in.
struct Part {
  StoredTensor tensor;
  std::shared_ptr<const Blob> file;
};

struct PackScheme {
  struct Group {
    int group;
    bool symmetric;
  };
  std::vector<Group> groups;  // every combination the configuration declares; empty: not quantised
};

// The quantization_config of config.json. Error naming the field when it is anything but 4-bit
// integer weights in groups of 32, 64 or 128.
PackScheme parse_pack_scheme(const Json& config, std::string_view where);

struct PackedParts {
  const Part *packed = nullptr, *scale = nullptr, *shape = nullptr, *zero = nullptr;
};

struct PackedShape {
  std::int64_t n = 0, k = 0;
  int group = 0;
};

// Checks dtypes and shapes of the parts against each other and the scheme; Error naming the tensor.
PackedShape check_packed(const std::string& name, const PackedParts& parts,
                         const PackScheme& scheme);
// The matrix of checked parts.
std::unique_ptr<WeightSource> packed_weight(const std::string& name, const PackedParts& parts,
                                            const PackedShape& shape);

}  // namespace nibble
