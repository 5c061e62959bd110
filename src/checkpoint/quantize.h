// A checkpoint -> a compressed-tensors `pack-quantized` directory in INT4 (docs/formats.md).
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "int4/quantise.h"

namespace nibble {

struct QuantizeOptions {
  int group = 128;  // 32, 64 or 128
  int4::Method method = int4::Method::Search;
  // A PCRE2 expression; a matrix whose name it matches anywhere stays 16 bit. "": none.
  std::string keep = {};
  // The embedding, and with it a tied head, in INT4 as well; a separate head always is.
  bool int4_embedding = false;
  std::uint64_t shard_bytes = 5'000'000'000;
  int threads = 0;  // 0: every core; the result is the same for any number
  // Told the fraction done and the tensor at work; it may throw to cancel.
  std::function<void(double, std::string_view)> progress = {};
};

struct QuantizedMatrix {
  std::string name, from, to;  // types: "BF16", "int4 g64"
  std::int64_t n = 0, k = 0;
  double relative_rms = 0;  // sqrt(sum (new - old)^2 / sum old^2); 0 when both are 0
  double max_error = 0;     // largest |new - old|
  std::uint64_t bytes_from = 0, bytes_to = 0;
};

struct QuantizeReport {
  std::vector<QuantizedMatrix> matrices;       // in the order of the file
  double relative_rms = 0, max_error = 0;      // over the matrices that became INT4
  std::uint64_t bytes_from = 0, bytes_to = 0;  // all tensors
  std::vector<std::string> notices;            // of the source
};

// Reads `source` (as Checkpoint::open; types without kernels are taken at 16 bit) and creates the
// directory `target`: written under a temporary name beside it, then renamed, so that a failure
// leaves nothing. Memory: rows of one matrix at a time and its scales. A matrix that is symmetric
// INT4 already, in groups that `group` divides, keeps its codes and scales bit for bit.
//
// UsageError: `target` exists, its parent does not, a bad option, `keep` is no expression or
// matches no matrix. Error: the source is damaged or holds NaN or Inf, `group` does not divide a
// matrix's K (both name the tensor), the disk is full.
QuantizeReport quantize(const std::filesystem::path& source, const std::filesystem::path& target,
                        const QuantizeOptions& options);

}  // namespace nibble
