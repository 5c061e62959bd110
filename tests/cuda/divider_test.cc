// Division by multiplication, which places gemv's work, against the processor's.
#define NIBBLE_CUDA_NS cuda_emulated
#include "backend/cuda/divider.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <climits>

namespace nibble::cuda_emulated {
namespace {

RC_GTEST_PROP(Divider, Divides, ()) {
  const int by = *rc::gen::oneOf(rc::gen::inRange(1, 300), rc::gen::inRange(1, INT_MAX)),
            times = *rc::gen::inRange(0, INT_MAX / by), any = *rc::gen::inRange(0, INT_MAX);
  for (const int n : {any, times * by, times * by + by - 1, INT_MAX})
    RC_ASSERT(divider(by).of(n) == n / by);
}

}  // namespace
}  // namespace nibble::cuda_emulated
