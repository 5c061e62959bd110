// A weight matrix as it is stored, whatever the file: the one form between checkpoint readers,
// the quantiser and the backends, which repack it once at load.
//
// A matrix is [N, K], row-major, y = W x. Per row, K is cut into groups of `group` columns:
//   Int4     w = (code - 8) * scale            code 0..15      (sym_int4, GGUF Q4_0)
//   Int4Aff  w = code * scale + offset         code 0..15      (GGUF Q4_1; zero points:
//                                                               offset = -zero * scale)
//   Int8     w = code * scale                  code -128..127  (GGUF Q8_0, group 32)
//   F16, BF16, F32   plain values, group = 0
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble {

enum class WeightType : std::uint8_t { Int4, Int4Aff, Int8, F16, BF16, F32 };

constexpr bool is_quantised(WeightType t) { return t <= WeightType::Int8; }
constexpr std::string_view weight_type_name(WeightType t) {
  constexpr std::string_view names[] = {"int4", "int4-affine", "int8", "f16", "bf16", "f32"};
  return names[static_cast<int>(t)];
}

struct WeightFormat {
  WeightType type = WeightType::F16;
  std::int64_t n = 0;  // rows (outputs)
  std::int64_t k = 0;  // columns (inputs)
  int group = 0;       // columns a scale covers: 32, 64 or 128; 0 for plain values
  // Scales and offsets are exactly representable in fp16 (else they need fp32).
  bool scales_are_f16 = true;

  std::int64_t groups() const { return group == 0 ? 0 : k / group; }
  // Bytes a decode step must read for this matrix, as a backend keeps it.
  std::uint64_t bytes() const {
    const auto s = static_cast<std::uint64_t>(n * groups()) * (scales_are_f16 ? 2 : 4);
    const auto e = static_cast<std::uint64_t>(n * k);
    switch (type) {
      case WeightType::Int4:
        return e / 2 + s;
      case WeightType::Int4Aff:
        return e / 2 + 2 * s;
      case WeightType::Int8:
        return e + s;
      case WeightType::F16:
      case WeightType::BF16:
        return 2 * e;
      case WeightType::F32:
        return 4 * e;
    }
    return 0;
  }
};

// A run of rows in canonical form. Unused vectors are empty.
struct WeightRows {
  std::vector<std::uint8_t> codes;  // [rows, K] one code a byte (Int8: the signed byte's bits)
  std::vector<float> scales;        // [rows, K / group]
  std::vector<float> offsets;       // [rows, K / group], Int4Aff only
  std::vector<float> values;        // [rows, K], plain types only; exact
};

// Where a matrix comes from. read() may be called from several threads at once.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  const WeightFormat& format() const { return format_; }
  const std::string& name() const { return name_; }
  // Fills `out` (resized as needed) with rows [row, row + count). Throws Error naming the tensor
  // when a scale or value is not finite.
  virtual void read(std::int64_t row, std::int64_t count, WeightRows& out) const = 0;
  // The caller is done with these rows: source pages may be dropped. They stay readable.
  virtual void release(std::int64_t row, std::int64_t count) const { (void)row, (void)count; }

 protected:
  WeightSource(std::string name, WeightFormat f) : format_(f), name_(std::move(name)) {}
  WeightFormat format_;
  std::string name_;
};

// Matrices of one format and shape, one below the other. Error when they differ.
class WeightStack final : public WeightSource {
 public:
  WeightStack(std::string name, std::vector<std::unique_ptr<WeightSource>> parts);
  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override;
  void release(std::int64_t row, std::int64_t count) const override;

 private:
  std::vector<std::unique_ptr<WeightSource>> parts_;
};

// Rows [row, row + count) as plain fp32 values [count, K]: the dequantised weights.
std::vector<float> dequantise(const WeightSource& w, std::int64_t row, std::int64_t count);

}  // namespace nibble
