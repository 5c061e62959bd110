#include "ops/add_rmsnorm_linear_conv.h"

namespace nibble {

void check(const AddRmsNormLinearArgs& a, const CausalConvArgs& c) {
  check(a), check(c);
  const std::int64_t channels = c.state->shape().channels();
  require(!a.outputs.empty() && a.epilogue == Epilogue::None && a.m == c.m &&
              a.outputs[0].y == c.u && a.outputs[0].ldy == channels &&
              a.outputs[0].w->format().n == channels,
          "[add_rmsnorm_linear_conv] expected the first output, of {} rows and {} columns, as the "
          "convolution's input",
          c.m, channels);
  const auto bytes = [](std::int64_t n) { return static_cast<std::size_t>(n) * sizeof(float); };
  const std::size_t size = bytes(c.m * channels), row = bytes(a.m * a.k);
  for (const float* p : {a.residual, a.delta, static_cast<const float*>(a.residual_out),
                         static_cast<const float*>(a.normed)})
    require(p == nullptr || !overlap(c.y, size, p, row),
            "[add_rmsnorm_linear_conv] expected the convolution's y apart from the rows, got an "
            "alias");
  require(
      !overlap(c.y, size, a.weight, bytes(a.k)),
      "[add_rmsnorm_linear_conv] expected the convolution's y apart from the norm's weight, got "
      "an alias");
  for (const LinearOutput& o : a.outputs)
    require(!overlap(c.y, size, o.y, bytes((a.m - 1) * o.ldy + o.w->format().n)),
            "[add_rmsnorm_linear_conv] expected the convolution's y apart from the projections', "
            "got an alias");
}

}  // namespace nibble
