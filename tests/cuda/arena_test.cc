// A model's device memory is one allocation, and what does not fit there is still given.
#include <gtest/gtest.h>

#include <cstring>

#include "cuda/emulated.h"

namespace nibble {
namespace {

constexpr std::size_t kModel = std::size_t{1} << 16, kMore = std::size_t{4} << 20;

TEST(Arena, CutsWhatFitsFromOneAllocation) {
  auto backend = emulated_backend(0, 1);
  backend->reserve(kModel);
  const std::uint64_t before = backend->scratch_memory();
  EXPECT_GE(before, kModel);
  Backend::Buffer a = backend->alloc(1000), b = backend->alloc(1), more = backend->alloc(kMore),
                  c = backend->alloc(1000);
  EXPECT_EQ(b.get() - a.get(), 1024);
  EXPECT_EQ(c.get() - b.get(), 512);
  EXPECT_EQ(before - backend->scratch_memory(), 2560u) << "what is cut is no longer spare";
  std::memset(a.get(), 1, 1000), std::memset(more.get(), 2, kMore), std::memset(c.get(), 3, 1000);
  a.reset();
  backend->reserve(kModel);  // of another model: what the first has stays
  EXPECT_NE(backend->alloc(1).get() - c.get(), 1024);
  b.reset(), backend.reset();
  EXPECT_EQ(static_cast<int>(c[999]), 3);
}

TEST(Arena, ThatThereIsNoMemoryForIsNone) {
  const auto backend = emulated_backend(0, 1);
  backend->reserve(std::size_t{1} << 60);
  EXPECT_EQ(backend->scratch_memory(), 0u);
  const Backend::Buffer a = backend->alloc(1000);
  std::memset(a.get(), 1, 1000);
  EXPECT_EQ(static_cast<int>(a[999]), 1);
}

}  // namespace
}  // namespace nibble
