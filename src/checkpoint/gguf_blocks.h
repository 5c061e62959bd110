// GGUF tensor types: how a block of each is laid out, and what it becomes here.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "int4/weight.h"

namespace nibble {

struct BlockType {
  std::uint32_t id;  // the type's number in the file
  std::string_view name;
  int values, bytes;    // of one block
  WeightType runs_as;   // the canonical form it is handed on in
  bool scales_are_f16;  // of that form
  // Exactly one is set. split: blocks -> the canonical form, exactly (codes, one scale and for
  // Int4Aff one offset per 32 values). decode: blocks -> values in fp32, each rounded once, as
  // plain values, or to be requantised (runs_as Int8).
  void (*split)(const std::byte* src, std::int64_t blocks, std::uint8_t* codes, float* scales,
                float* offsets);
  void (*decode)(const std::byte* src, std::int64_t blocks, float* values);

  bool requantised() const { return runs_as == WeightType::Int8 && decode != nullptr; }
};

// nullptr: a type that is unknown or has no reader.
const BlockType* find_block_type(std::uint32_t id);
// The name of any type number, for errors.
std::string block_type_name(std::uint32_t id);
std::string supported_block_types();

// Blocks of any type -> the values they stand for.
void decode_blocks(const BlockType& type, const std::byte* src, std::int64_t blocks, float* values);

// Nearest INT8 codes with one fp16 scale per 32: values[n] -> codes[n], scales[n / 32]. n is a
// multiple of 32. A scale beyond fp16 comes out infinite.
void requantise_int8(const float* values, std::size_t n, std::uint8_t* codes, float* scales);

}  // namespace nibble
