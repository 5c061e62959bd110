#include "checkpoint/gguf_blocks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "checkpoint/values.h"

namespace nibble {
namespace {

using std::byte;
using std::int64_t;
using std::uint16_t;
using std::uint32_t;
using std::uint8_t;

float half_at(const byte* p) { return half_to_float(load<uint16_t>(p)); }
const uint8_t* octets(const byte* p) { return reinterpret_cast<const uint8_t*>(p); }

// 16 bytes -> 32 codes: low nibbles first, then high ones. Eight at a time: bytes may alias
// anything, so that a compiler takes a loop over them one by one.
void split_nibbles(const uint8_t* q, uint8_t* codes) {
  constexpr std::uint64_t kLow = 0x0f0f0f0f0f0f0f0f;
  std::uint64_t both[2];
  std::memcpy(both, q, 16);
  const std::uint64_t split[] = {both[0] & kLow, both[1] & kLow, both[0] >> 4 & kLow,
                                 both[1] >> 4 & kLow};
  std::memcpy(codes, split, 32);
}

// 32 fifth bits at `high`, added to 32 codes.
void add_fifth_bits(const byte* high, uint8_t* codes) {
  const auto bits = load<uint32_t>(high);
  for (int i = 0; i < 32; ++i) codes[i] |= static_cast<uint8_t>((bits >> i & 1) << 4);
}

// Q4_0, 18 bytes: fp16 d, 16 bytes of nibbles; d * (q - 8).
void split_q4_0(const byte* src, int64_t blocks, uint8_t* codes, float* scales, float*) {
  for (int64_t b = 0; b < blocks; ++b, src += 18, codes += 32) {
    scales[b] = half_at(src);
    split_nibbles(octets(src) + 2, codes);
  }
}

// Q4_1, 20 bytes: fp16 d, fp16 m, nibbles; d * q + m.
void split_q4_1(const byte* src, int64_t blocks, uint8_t* codes, float* scales, float* offsets) {
  for (int64_t b = 0; b < blocks; ++b, src += 20, codes += 32) {
    scales[b] = half_at(src);
    offsets[b] = half_at(src + 2);
    split_nibbles(octets(src) + 4, codes);
  }
}

// Q8_0, 34 bytes: fp16 d, 32 signed bytes; d * q.
void split_q8_0(const byte* src, int64_t blocks, uint8_t* codes, float* scales, float*) {
  for (int64_t b = 0; b < blocks; ++b, src += 34, codes += 32) {
    scales[b] = half_at(src);
    std::memcpy(codes, src + 2, 32);
  }
}

// Q5_0, 22 bytes: fp16 d, 4 bytes of fifth bits, nibbles; d * (q - 16), which INT8 holds exactly.
void split_q5_0(const byte* src, int64_t blocks, uint8_t* codes, float* scales, float*) {
  for (int64_t b = 0; b < blocks; ++b, src += 22, codes += 32) {
    scales[b] = half_at(src);
    split_nibbles(octets(src) + 6, codes);
    add_fifth_bits(src + 2, codes);
    for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(codes[i] - 16);
  }
}

// Q5_1, 24 bytes: fp16 d, fp16 m, 4 bytes of fifth bits, nibbles; d * q + m.
void decode_q5_1(const byte* src, int64_t blocks, float* out) {
  for (int64_t b = 0; b < blocks; ++b, src += 24, out += 32) {
    const float d = half_at(src), m = half_at(src + 2);
    uint8_t q[32];
    split_nibbles(octets(src) + 8, q);
    add_fifth_bits(src + 4, q);
    for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(q[i]) + m;
  }
}

// The eight 6-bit scales and minima of Q4_K and Q5_K, in 12 bytes: 0..3 in the low bits of bytes
// 0..3 and 4..7; 4..7 with four bits in bytes 8..11 and the top two in those of 0..7.
struct KScales {
  float scale[8], min[8];
};
KScales k_scales(const byte* src) {
  const float d = half_at(src), dmin = half_at(src + 2);
  const uint8_t* p = octets(src) + 4;
  KScales k;
  for (int i = 0; i < 4; ++i) {
    k.scale[i] = d * static_cast<float>(p[i] & 63);
    k.min[i] = dmin * static_cast<float>(p[i + 4] & 63);
    k.scale[i + 4] = d * static_cast<float>((p[i + 8] & 15) | (p[i] >> 6 << 4));
    k.min[i + 4] = dmin * static_cast<float>((p[i + 8] >> 4) | (p[i + 4] >> 6 << 4));
  }
  return k;
}

// Q4_K, 144 bytes for 256: fp16 d, fp16 dmin, 12 bytes of scales and minima, four runs of 32 bytes:
// low nibbles are one group of 32, high ones the next; (d * s) * q - dmin * m. Both products of an
// fp16 and six bits are exact in fp32.
void split_q4_k(const byte* src, int64_t blocks, uint8_t* codes, float* scales, float* offsets) {
  for (int64_t b = 0; b < blocks; ++b, src += 144, codes += 256, scales += 8, offsets += 8) {
    const KScales k = k_scales(src);
    for (int g = 0; g < 8; ++g) {
      scales[g] = k.scale[g];
      offsets[g] = -k.min[g];
    }
    for (int run = 0; run < 4; ++run)
      for (int i = 0; i < 32; ++i) {
        const uint8_t q = octets(src)[16 + 32 * run + i];
        codes[64 * run + i] = q & 15;
        codes[64 * run + 32 + i] = q >> 4;
      }
  }
}

// Q5_K, 176 bytes for 256: as Q4_K, with 32 bytes of fifth bits before the nibbles: bit g of byte i
// belongs to element i of group g.
void decode_q5_k(const byte* src, int64_t blocks, float* out) {
  for (int64_t b = 0; b < blocks; ++b, src += 176, out += 256) {
    const KScales k = k_scales(src);
    const uint8_t *high = octets(src) + 16, *low = octets(src) + 48;
    for (int g = 0; g < 8; ++g)
      for (int i = 0; i < 32; ++i) {
        const int nibble = low[32 * (g / 2) + i] >> (4 * (g % 2)) & 15;
        const int q = nibble | (high[i] >> g & 1) << 4;
        out[32 * g + i] = k.scale[g] * static_cast<float>(q) - k.min[g];
      }
  }
}

// Q6_K, 210 bytes for 256: 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales of 16
// values each, fp16 d; (d * s) * (q - 32). Per half of 128: quarter j of 32 takes the nibbles of
// bytes 32 * (j % 2) .. + 31, low for j < 2, and bits 2j of the upper bytes.
void decode_q6_k(const byte* src, int64_t blocks, float* out) {
  for (int64_t b = 0; b < blocks; ++b, src += 210, out += 256) {
    const float d = half_at(src + 208);
    for (int g = 0; g < 8; ++g) {
      const int half = g / 4, j = g % 4;
      const uint8_t* low = octets(src) + 64 * half + 32 * (j % 2);
      const uint8_t* high = octets(src) + 128 + 32 * half;
      for (int i = 0; i < 32; ++i) {
        const float scale = d * static_cast<float>(load<std::int8_t>(src + 192 + 2 * g + i / 16));
        const int q = (low[i] >> (4 * (j / 2)) & 15) | (high[i] >> (2 * j) & 3) << 4;
        out[32 * g + i] = scale * static_cast<float>(q - 32);
      }
    }
  }
}

void decode_f32(const byte* src, int64_t n, float* out) {
  std::memcpy(out, src, static_cast<std::size_t>(n) * 4);
}
void decode_f16(const byte* src, int64_t n, float* out) {
  widen_f16(src, static_cast<std::size_t>(n), out);
}
void decode_bf16(const byte* src, int64_t n, float* out) {
  widen_bf16(src, static_cast<std::size_t>(n), out);
}

constexpr std::array kTypes = {
    BlockType{0, "F32", 1, 4, WeightType::F32, true, nullptr, decode_f32},
    BlockType{1, "F16", 1, 2, WeightType::F16, true, nullptr, decode_f16},
    BlockType{30, "BF16", 1, 2, WeightType::BF16, true, nullptr, decode_bf16},
    BlockType{2, "Q4_0", 32, 18, WeightType::Int4, true, split_q4_0, nullptr},
    BlockType{3, "Q4_1", 32, 20, WeightType::Int4Aff, true, split_q4_1, nullptr},
    BlockType{6, "Q5_0", 32, 22, WeightType::Int8, true, split_q5_0, nullptr},
    BlockType{7, "Q5_1", 32, 24, WeightType::Int8, true, nullptr, decode_q5_1},
    BlockType{8, "Q8_0", 32, 34, WeightType::Int8, true, split_q8_0, nullptr},
    BlockType{12, "Q4_K", 256, 144, WeightType::Int4Aff, false, split_q4_k, nullptr},
    BlockType{13, "Q5_K", 256, 176, WeightType::Int8, true, nullptr, decode_q5_k},
    BlockType{14, "Q6_K", 256, 210, WeightType::Int8, true, nullptr, decode_q6_k},
};

struct OtherType {
  uint32_t id;
  std::string_view name;
};
constexpr OtherType kOthers[] = {
    {9, "Q8_1"},     {10, "Q2_K"},  {11, "Q3_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"},
    {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"},
    {24, "I8"},      {25, "I16"},   {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},
    {34, "TQ1_0"},   {35, "TQ2_0"}, {39, "MXFP4"},  {40, "NVFP4"},
};

}  // namespace

const BlockType* find_block_type(uint32_t id) {
  for (const BlockType& t : kTypes)
    if (t.id == id) return &t;
  return nullptr;
}

std::string block_type_name(uint32_t id) {
  if (const BlockType* t = find_block_type(id)) return std::string(t->name);
  for (const OtherType& t : kOthers)
    if (t.id == id) return std::string(t.name);
  return fmt::format("number {}", id);
}

std::string supported_block_types() {
  std::string s;
  for (const BlockType& t : kTypes) s += fmt::format("{}{}", s.empty() ? "" : ", ", t.name);
  return s;
}

void decode_blocks(const BlockType& type, const byte* src, int64_t blocks, float* values) {
  if (type.decode != nullptr) return type.decode(src, blocks, values);
  const auto n = static_cast<std::size_t>(blocks * type.values);
  std::vector<uint8_t> codes(n);
  std::vector<float> scales(n / 32), offsets(n / 32);
  type.split(src, blocks, codes.data(), scales.data(), offsets.data());
  for (std::size_t i = 0; i < n; ++i) {
    const int q = type.runs_as == WeightType::Int4   ? codes[i] - 8
                  : type.runs_as == WeightType::Int8 ? static_cast<std::int8_t>(codes[i])
                                                     : codes[i];
    values[i] = static_cast<float>(q) * scales[i / 32];
    if (type.runs_as == WeightType::Int4Aff) values[i] += offsets[i / 32];
  }
}

void requantise_int8(const float* values, std::size_t n, uint8_t* codes, float* scales) {
  for (std::size_t g = 0; g < n / 32; ++g) {
    const float* x = values + 32 * g;
    float largest = 0;
    for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[i]));
    uint16_t bits = float_to_half(largest / 127.0f);
    // A scale among fp16's subnormals may round down so far that the largest value has no code.
    if (half_to_float(bits) * 127.5f < largest) ++bits;
    const float d = half_to_float(bits);
    scales[g] = d;
    const float inverse = d > 0 ? 1.0f / d : 0.0f;
    // Adding 1.5 * 2^23 rounds to the nearest integer, whose low byte then ends the bit pattern.
    for (int i = 0; i < 32; ++i)
      codes[32 * g + static_cast<std::size_t>(i)] = static_cast<uint8_t>(
          std::bit_cast<uint32_t>(std::clamp(x[i] * inverse, -127.0f, 127.0f) + 0x1.8p23f));
  }
}

}  // namespace nibble
