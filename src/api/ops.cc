// The C API of the fused operation (include/nibble/ops.h): checks, conversions to fp32, codes and
// messages. What is computed is in ops/add_rmsnorm_linear.h.
#include "nibble/ops.h"

#include <array>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "backend/backend.h"
#include "base/half.h"
#include "int4/format.h"

struct nibble_context {
  std::unique_ptr<nibble::Backend> backend;
  std::vector<float> delta, norm, sum;  // converted inputs; residual_out of the in-place form
};
struct nibble_weight {
  std::unique_ptr<nibble::Weight> packed;
};

namespace nibble {
namespace {

thread_local std::string last_error;

class Int4Words final : public WeightSource {
 public:
  Int4Words(const std::int32_t* words, const std::uint16_t* scales, const WeightFormat& f)
      : WeightSource("weight", f), words_(words), scales_(scales) {}

  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override {
    const std::int64_t k = format_.k, groups = format_.groups();
    out.codes.resize(static_cast<std::size_t>(count * k));
    for (std::int64_t i = 0; i < count * k / 8; ++i)
      int4::unpack8(static_cast<std::uint32_t>(words_[row * k / 8 + i]), out.codes.data() + 8 * i);
    out.scales.resize(static_cast<std::size_t>(count * groups));
    for (std::int64_t i = 0; i < count * groups; ++i) {
      const float s = half_to_float(scales_[row * groups + i]);
      if (!std::isfinite(s))
        fail_usage("[pack_int4] expected finite scales, got {} at row {}, group {}", s,
                   row + i / groups, i % groups);
      out.scales[static_cast<std::size_t>(i)] = s;
    }
  }

 private:
  const std::int32_t* words_;
  const std::uint16_t* scales_;
};

std::size_t bytes_of(nibble_dtype t) { return t == NIBBLE_F32 ? 4 : 2; }

template <class... A>
void expect(bool ok, fmt::format_string<A...> f, A&&... a) {
  if (!ok) fail_usage(f, std::forward<A>(a)...);
}

// Elements as fp32: `from` itself when it is, else converted into `scratch`.
const float* as_floats(const void* from, nibble_dtype t, std::int64_t count,
                       std::vector<float>& scratch) {
  if (from == nullptr || t == NIBBLE_F32) return static_cast<const float*>(from);
  const auto n = static_cast<std::size_t>(count);
  if (scratch.size() < n) scratch.resize(n);
  const auto* bytes = static_cast<const unsigned char*>(from);
  for (std::size_t i = 0; i < n; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, bytes + 2 * i, 2);
    scratch[i] = t == NIBBLE_F16 ? half_to_float(bits) : bf16_to_float(bits);
  }
  return scratch.data();
}

// An input that is converted is out of the operation's sight: its aliases are checked here.
void check_apart(const nibble_add_rmsnorm_int4_args& a) {
  const auto size = [](std::int64_t n, std::size_t each) {
    return static_cast<std::size_t>(n) * each;
  };
  const auto apart = [&](const char* name, const float* out, std::int64_t count) {
    expect(!overlap(out, size(count, 4), a.delta, size(a.m * a.k, bytes_of(a.delta_type))) &&
               !overlap(out, size(count, 4), a.norm_weight, size(a.k, bytes_of(a.norm_type))),
           "[add_rmsnorm_int4] expected {} apart from delta and norm_weight, got an alias", name);
  };
  apart("residual_out", a.residual_out, a.m * a.k);
  apart("normed", a.normed, a.m * a.k);
  for (int i = 0; i < a.weight_count; ++i)
    apart("y", a.y[i], a.m * a.weights[i]->packed->format().n);
}

bool known(nibble_dtype t) { return t == NIBBLE_F32 || t == NIBBLE_F16 || t == NIBBLE_BF16; }

void add_rmsnorm_int4(nibble_context* context, const nibble_add_rmsnorm_int4_args* args) {
  expect(context != nullptr && args != nullptr,
         "[add_rmsnorm_int4] expected a context and arguments, got null");
  const nibble_add_rmsnorm_int4_args& a = *args;
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  expect(a.m > 0 && a.m < kMost && a.k > 0 && a.k < kMost,
         "[add_rmsnorm_int4] expected 0 < M, K < 2^31, got {} and {}", a.m, a.k);
  expect(known(a.delta_type) && known(a.norm_type),
         "[add_rmsnorm_int4] expected types F32, F16 or BF16, got {} and {}",
         static_cast<int>(a.delta_type), static_cast<int>(a.norm_type));
  expect(a.activations >= NIBBLE_INT16 && a.activations <= NIBBLE_FP32,
         "[add_rmsnorm_int4] expected activations INT16, INT8 or FP32, got {}",
         static_cast<int>(a.activations));
  std::array<LinearOutput, 4> outputs;
  const auto count = static_cast<std::size_t>(a.weight_count);
  expect(count <= outputs.size(), "[add_rmsnorm_int4] expected 0 to 4 weights, got {}",
         a.weight_count);
  expect(count == 0 || (a.weights != nullptr && a.y != nullptr),
         "[add_rmsnorm_int4] expected weights and y, got null");
  for (std::size_t i = 0; i < count; ++i) {
    expect(a.weights[i] != nullptr && a.y[i] != nullptr,
           "[add_rmsnorm_int4] expected weight and y {}, got null", i);
    outputs[i] = {a.weights[i]->packed.get(), nullptr, a.y[i], a.weights[i]->packed->format().n};
  }
  expect(a.norm_weight != nullptr, "[add_rmsnorm_int4] expected norm_weight, got null");
  check_apart(a);
  const AddRmsNormLinearArgs op{
      .residual = a.residual,
      .delta = as_floats(a.delta, a.delta_type, a.m * a.k, context->delta),
      .weight = as_floats(a.norm_weight, a.norm_type, a.k, context->norm),
      .eps = a.eps,
      .unit_offset = a.unit_offset != 0,
      .residual_out = a.residual_out,
      .normed = a.normed,
      .m = a.m,
      .k = a.k,
      .activations = static_cast<Activations>(a.activations),
      .outputs = {outputs.data(), count}};
  try {
    check(op);
  } catch (const Error& e) {
    throw UsageError(e.what());
  }
  context->backend->add_rmsnorm_linear(op);
}

// Runs f and turns what it throws into a code and a message.
template <class F>
nibble_status guarded(F&& f) {
  const auto say = [](nibble_status s, const char* what) {
    try {
      last_error = what;
    } catch (const std::bad_alloc&) {
      last_error.clear();
    }
    return s;
  };
  try {
    f();
    return NIBBLE_OK;
  } catch (const UsageError& e) {
    return say(NIBBLE_INVALID, e.what());
  } catch (const std::bad_alloc&) {
    return say(NIBBLE_NO_MEMORY, "not enough memory");
  } catch (const std::exception& e) {
    return say(NIBBLE_FAILED, e.what());
  }
}

}  // namespace
}  // namespace nibble

extern "C" {

const char* nibble_last_error(void) { return nibble::last_error.c_str(); }

nibble_status nibble_context_create(int threads, nibble_context** out) {
  return nibble::guarded([&] {
    nibble::expect(out != nullptr, "[context_create] expected a place for the context, got null");
    nibble::expect(threads >= 0 && threads <= 1024,
                   "[context_create] expected 0 to 1024 threads, got {}", threads);
    *out = new nibble_context{nibble::make_backend("cpu", threads), {}, {}, {}};
  });
}
void nibble_context_destroy(nibble_context* context) { delete context; }

nibble_status nibble_weight_pack_int4(nibble_context* context, const int32_t* words,
                                      const uint16_t* scales, int64_t n, int64_t k, int group,
                                      nibble_weight** out) {
  return nibble::guarded([&] {
    nibble::expect(context != nullptr && words != nullptr && scales != nullptr && out != nullptr,
                   "[pack_int4] expected a context, words, scales and a place for the weight, got "
                   "null");
    nibble::expect(group == 32 || group == 64 || group == 128,
                   "[pack_int4] expected a group of 32, 64 or 128, got {}", group);
    constexpr std::int64_t kMost = std::int64_t{1} << 31;
    nibble::expect(n > 0 && n < kMost && k > 0 && k < kMost - 128 && k % group == 0,
                   "[pack_int4] expected 0 < N, K < 2^31 and K a multiple of {}, got {} and {}",
                   group, n, k);
    const nibble::Int4Words source(words, scales, {nibble::WeightType::Int4, n, k, group, true});
    *out = new nibble_weight{context->backend->pack(source, 1)};
  });
}
void nibble_weight_destroy(nibble_weight* weight) { delete weight; }

nibble_status nibble_add_rmsnorm_int4(nibble_context* context,
                                      const nibble_add_rmsnorm_int4_args* args) {
  return nibble::guarded([&] { nibble::add_rmsnorm_int4(context, args); });
}

nibble_status nibble_add_rmsnorm_int4_inplace(nibble_context* context, float* residual,
                                              const void* delta, nibble_dtype delta_type,
                                              const void* norm_weight, nibble_dtype norm_type,
                                              float eps, const nibble_weight* weight, int64_t m,
                                              float* y) {
  return nibble::guarded([&] {
    nibble::expect(context != nullptr && weight != nullptr && m > 0,
                   "[add_rmsnorm_int4] expected a context, a weight and M > 0, got null or {}", m);
    const std::int64_t k = weight->packed->format().k;
    const auto count = static_cast<std::size_t>(m * k);
    if (context->sum.size() < count) context->sum.resize(count);
    nibble_add_rmsnorm_int4_args a{};
    a.m = m, a.k = k;
    a.residual = residual, a.delta = delta, a.delta_type = delta_type;
    a.norm_weight = norm_weight, a.norm_type = norm_type, a.eps = eps;
    a.residual_out = context->sum.data();
    a.weight_count = 1, a.weights = &weight, a.y = &y;
    nibble::add_rmsnorm_int4(context, &a);
    std::memcpy(residual, context->sum.data(), count * sizeof(float));
  });
}

}  // extern "C"
