// What each tensor of a checkpoint becomes when it is quantised: decided, and checked, before
// anything is written.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/quantize.h"
#include "checkpoint/writer.h"

namespace nibble {

struct QuantizeStep {
  enum class To : std::uint8_t {
    Packed,  // quantised to INT4
    Copied,  // INT4 as it is: same codes and scales, only cut to `group`
    Plain,   // a matrix in `dtype`
    Vector,  // one dimension, or a convolution's taps [n, 1, t], in `dtype`
  };
  TensorInfo info;
  To to = To::Vector;
  DType dtype = DType::F16;  // of the values; of the scales where INT4
  bool int4() const { return to == To::Packed || to == To::Copied; }
};

struct QuantizePlan {
  std::vector<QuantizeStep> steps;  // in the order of the file
  std::vector<std::string>
      ignore;  // modules with a matrix that stays 16 bit, as config.json lists them
  bool int4_embedding = false;
  // The tensors of `steps`, as they are written: an INT4 matrix is X_shape, X_packed, X_scale.
  std::vector<PlannedTensor> tensors(int group) const;
};

// Errors as quantize().
QuantizePlan plan_quantize(const Checkpoint& checkpoint, const QuantizeOptions& options);

}  // namespace nibble
