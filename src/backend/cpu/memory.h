// Memory of the CPU backend.
#pragma once
#include <cstddef>
#include <memory>

namespace nibble::cpu {

// On a cache line's boundary, zero-filled and not resident until touched. guard: one unreadable
// page before, and one right after the last byte (to 64). Throws Error naming `what` and the size.
// huge: in pages of 2 MB where the system gives them, for what is read as a stream; scratch that
// may stay mostly untouched takes small ones.
std::shared_ptr<char> allocate(std::size_t bytes, const char* what, bool guard, bool huge = true);

template <class T>
class Array {
 public:
  Array() = default;
  Array(std::size_t n, const char* what, bool guard = false)
      : bytes_(allocate(n * sizeof(T), what, guard)), size_(n) {}
  T* data() { return reinterpret_cast<T*>(bytes_.get()); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.get()); }
  std::size_t size() const { return size_; }

 private:
  std::shared_ptr<char> bytes_;
  std::size_t size_ = 0;
};

}  // namespace nibble::cpu
