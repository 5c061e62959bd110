// Buffers that show a stray read or write.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "base/error.h"

namespace nibble::verify {

// n floats that end at an unreadable page and begin after one (rounded down to 64 bytes); filled
// with NaN, so that an element nobody wrote or read by mistake shows.
class Guarded {
 public:
  explicit Guarded(std::size_t n) : n_(n) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    bytes_ = (n * sizeof(float) + page - 1) / page * page + 2 * page;
    void* p = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(p != MAP_FAILED, "not enough memory for a guarded buffer: {:.1f} MB needed",
            static_cast<double>(bytes_) / 1e6);
    base_ = static_cast<char*>(p);
    ::mprotect(base_, page, PROT_NONE);
    ::mprotect(base_ + bytes_ - page, page, PROT_NONE);
    data_ = reinterpret_cast<float*>(base_ + bytes_ - page) - n;
    poison();
  }
  Guarded(const std::vector<float>& v) : Guarded(v.size()) {
    std::memcpy(data_, v.data(), n_ * sizeof(float));
  }
  ~Guarded() { ::munmap(base_, bytes_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  void poison() { std::memset(data_, 0xff, n_ * sizeof(float)); }
  float* data() { return data_; }
  const float* data() const { return data_; }
  std::size_t size() const { return n_; }
  std::vector<float> copy() const { return {data_, data_ + n_}; }

 private:
  std::size_t n_, bytes_;
  char* base_;
  float* data_;
};

inline bool same_bits(const float* a, const float* b, std::size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), a.size());
}

}  // namespace nibble::verify
