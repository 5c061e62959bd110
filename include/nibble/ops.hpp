// The fused operation of ops.h in C++: the same functions, owning types, errors thrown as
// std::runtime_error (std::invalid_argument for a bad argument, std::bad_alloc for memory).
#pragma once
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>

#include "nibble/ops.h"

namespace nibble {

inline void throw_on_error(nibble_status status) {
  if (status == NIBBLE_INVALID) throw std::invalid_argument(nibble_last_error());
  if (status == NIBBLE_NO_MEMORY) throw std::bad_alloc();
  if (status != NIBBLE_OK) throw std::runtime_error(nibble_last_error());
}

// Packed INT4 weights, [N, K]. Move-only.
class Int4Weight {
 public:
  const nibble_weight* get() const { return weight_.get(); }

 private:
  friend class FusedOps;
  struct Destroy {
    void operator()(nibble_weight* w) const { nibble_weight_destroy(w); }
  };
  std::unique_ptr<nibble_weight, Destroy> weight_;
};

// A context. Move-only; one thread at a time.
class FusedOps {
 public:
  explicit FusedOps(int threads = 0) {
    nibble_context* c = nullptr;
    throw_on_error(nibble_context_create(threads, &c));
    context_.reset(c);
  }

  // words: [N, K / 8], scales: [N, K / group] fp16 bits, as nibble_weight_pack_int4.
  Int4Weight pack(const std::int32_t* words, const std::uint16_t* scales, std::int64_t n,
                  std::int64_t k, int group) {
    nibble_weight* w = nullptr;
    throw_on_error(nibble_weight_pack_int4(context_.get(), words, scales, n, k, group, &w));
    Int4Weight out;
    out.weight_.reset(w);
    return out;
  }

  void add_rmsnorm_int4(const nibble_add_rmsnorm_int4_args& args) {
    throw_on_error(nibble_add_rmsnorm_int4(context_.get(), &args));
  }

  nibble_context* get() { return context_.get(); }

 private:
  struct Destroy {
    void operator()(nibble_context* c) const { nibble_context_destroy(c); }
  };
  std::unique_ptr<nibble_context, Destroy> context_;
};

}  // namespace nibble
