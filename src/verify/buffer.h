// A buffer of a backend that shows a stray write: poisoned, between guards.
#pragma once
#include <bit>
#include <optional>

#include "backend/backend.h"
#include "verify/guarded.h"

namespace nibble::verify {

// Host memory is Guarded: a stray access stops the program. Device memory lies between 256 bytes of
// NaN on either side, which copy() finds changed (stray reads are for compute-sanitizer to find).
class Buffer {
 public:
  Buffer(Backend& b, std::size_t n) : backend_(b), n_(n) {
    if (b.is_host()) {
      host_.emplace(n);
      return;
    }
    device_ = b.alloc((n + 2 * kGuard) * sizeof(float));
    const std::vector<float> poison(n + 2 * kGuard, std::bit_cast<float>(0xffffffffu));
    b.upload(device_.get(), poison.data(), poison.size() * sizeof(float));
  }
  Buffer(Backend& b, const std::vector<float>& v) : Buffer(b, v.size()) {
    b.upload(data(), v.data(), n_ * sizeof(float));
  }
  float* data() { return host_ ? host_->data() : reinterpret_cast<float*>(device_.get()) + kGuard; }
  std::vector<float> copy() {
    if (host_) return host_->copy();
    std::vector<float> all(n_ + 2 * kGuard);
    backend_.download(all.data(), device_.get(), all.size() * sizeof(float));
    for (std::size_t i = 0; i < kGuard; ++i)
      for (const float x : {all[i], all[all.size() - 1 - i]})
        require(std::bit_cast<std::uint32_t>(x) == 0xffffffffu,
                "memory outside a buffer was written");
    return {all.begin() + kGuard, all.end() - kGuard};
  }

 private:
  static constexpr std::size_t kGuard = 64;
  Backend& backend_;
  std::size_t n_;
  std::optional<Guarded> host_;
  Backend::Buffer device_;
};

}  // namespace nibble::verify
