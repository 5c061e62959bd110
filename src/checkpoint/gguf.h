// The GGUF container, versions 2 and 3, little-endian: header, metadata, tensor table, data.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/gguf_blocks.h"

namespace nibble {

enum class GgufKind : std::uint32_t {
  U8,
  I8,
  U16,
  I16,
  U32,
  I32,
  F32,
  Bool,
  String,
  Array,
  U64,
  I64,
  F64
};

struct GgufTensor {
  std::string_view name;
  const BlockType* type = nullptr;
  int rank = 0;
  std::array<std::int64_t, 4> shape{};  // outermost first, `rank` of them
  std::span<const std::byte> data;

  std::int64_t columns() const { return shape[static_cast<std::size_t>(rank - 1)]; }
  std::int64_t row_bytes() const { return columns() / type->values * type->bytes; }
};

// A parsed file. Names and data point into its bytes, which must outlive it.
class Gguf {
 public:
  // Validates everything but values: lengths, counts and nesting against the file's size, names,
  // duplicates, alignment, tensor types, and data in range without overlap. Error naming `where`.
  Gguf(std::span<const std::byte> file, std::string where);

  std::uint32_t version() const { return version_; }
  const std::string& where() const { return where_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in the order of the table
  const GgufTensor* tensor(std::string_view name) const;               // nullptr: none

  // Metadata. nullopt (empty for lists): no such key. Error when it is of another kind, or an
  // integer outside [low, high].
  bool has(std::string_view key) const { return metadata_.contains(key); }
  std::optional<std::int64_t> integer(std::string_view key, std::int64_t low,
                                      std::int64_t high) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string_view> string(std::string_view key) const;
  std::vector<std::string_view> strings(std::string_view key) const;
  std::vector<std::int64_t> integers(std::string_view key) const;

 private:
  struct Value {
    GgufKind kind;  // of the value, or of each element
    bool array;
    std::uint64_t count;              // elements
    std::span<const std::byte> data;  // as stored
  };
  class Reader;
  const Value* find(std::string_view key) const;  // nullptr: none
  const Value* find_list(std::string_view key) const;
  void read_metadata(Reader& in, std::uint64_t count);
  void read_tensors(Reader& in, std::uint64_t count);
  void check_overlap() const;

  std::string where_;
  std::uint32_t version_ = 0;
  std::map<std::string_view, Value> metadata_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string_view, std::size_t> by_name_;
};

}  // namespace nibble
