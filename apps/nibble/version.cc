#include "version.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <vector>

#include "backend/cuda/make.h"
#include "commit.h"
#include "nibble/nibble.hpp"

namespace nibble::cli {
namespace {

// Of the features that kernels can use, those this machine has.
std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const auto add = [&](bool has, const char* name) {
    if (has) found.emplace_back(name);
  };
  add(__builtin_cpu_supports("avx2"), "avx2");
  add(__builtin_cpu_supports("fma"), "fma");
  add(__builtin_cpu_supports("avx512f"), "avx512f");
  add(__builtin_cpu_supports("avx512bw"), "avx512bw");
  add(__builtin_cpu_supports("avx512vl"), "avx512vl");
  add(__builtin_cpu_supports("avx512vnni"), "avx512vnni");
#elif defined(__aarch64__)
  found.emplace_back("neon");
#endif
  return found;
}

}  // namespace

std::string commit() { return NIBBLE_COMMIT; }

std::string version_text() {
#if defined(__clang__)
  const std::string compiler = fmt::format("clang {}", __clang_version__);
#else
  const std::string compiler = fmt::format("gcc {}", __VERSION__);
#endif
  return fmt::format("nibble {}\ncommit {}\ncompiler {}\nbuild {}\ncpu {}\nbackends {}", version(),
                     commit(), compiler, NIBBLE_BUILD_TYPE, fmt::join(cpu_features(), " "),
                     cuda::built() ? "cpu cuda" : "cpu");
}

}  // namespace nibble::cli
