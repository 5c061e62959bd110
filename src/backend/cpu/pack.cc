// Packing: canonical rows -> tiles of 16 rows (kernels.h says how), a block of tiles at a time.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "base/half.h"

namespace nibble::cpu {

namespace {

std::int64_t chunk_bytes(WeightType t) {
  switch (t) {
    case WeightType::Int4:
    case WeightType::Int4Aff:
      return kTile * kChunk / 2;
    case WeightType::Int8:
      return kTile * kChunk;
    case WeightType::F16:
    case WeightType::BF16:
      return kTile * kChunk * 2;
    case WeightType::F32:
      return kTile * kChunk * 4;
  }
  return 0;
}

}  // namespace

PackedWeight::PackedWeight(const WeightSource& source, int pieces, std::int64_t stack,
                           const Kernels& kernels, ThreadPool& pool, bool guarded)
    : Weight(source.format(), pieces, stack),
      plan_(plan_k(source.format().k, source.format().group, pieces)) {
  require(stack > 0 && format_.n % stack == 0, "[pack] expected {} rows in {} equal matrices",
          format_.n, stack);
  const std::int64_t tiles = tile_count(), chunks = plan_.padded_k / kChunk,
                     groups = format_.groups();
  const std::int64_t scale_size = format_.scales_are_f16 ? 2 : 4;
  const bool quantised = is_quantised(format_.type);
  tiles_ = {.type = format_.type,
            .scales_f16 = format_.scales_are_f16,
            .tile_bytes = chunks * chunk_bytes(format_.type),
            .groups = groups,
            .units = plan_.units.data(),
            .unit_count = static_cast<std::int32_t>(plan_.units.size()),
            .pieces = pieces};
  codes_ = {static_cast<std::size_t>(tiles * tiles_.tile_bytes), "weights", guarded};
  if (quantised)
    scales_ = {static_cast<std::size_t>(tiles * groups * kTile * scale_size), "weight scales",
               guarded};
  if (format_.type == WeightType::Int4Aff) offsets_ = {scales_.size(), "weight offsets", guarded};
  tiles_.codes = codes_.data(), tiles_.scales = scales_.data(), tiles_.offsets = offsets_.data();
  bytes_ = codes_.size() + scales_.size() + offsets_.size();

  const std::int64_t per_read =
      std::clamp<std::int64_t>((1 << 18) / (kTile * format_.k), 1, 16);   // tiles
  const std::int64_t reads = (matrix_tiles() + per_read - 1) / per_read;  // of a matrix
  std::atomic<std::int64_t> next{0};
  pool.run([&](int) {
    WeightRows rows;
    for (;;) {
      const std::int64_t task = next.fetch_add(1), matrix = task / reads;
      if (matrix >= stack_) return;
      const std::int64_t first = task % reads * per_read,  // tile of the matrix
          last = std::min(matrix_tiles(), first + per_read);
      const std::int64_t row = matrix * matrix_rows() + first * kTile,
                         count = std::min(matrix_rows(), last * kTile) - first * kTile;
      source.read(row, count, rows);
      for (std::int64_t t = first; t < last; ++t)
        pack_tile(kernels, matrix * matrix_tiles() + t, rows, (t - first) * kTile,
                  std::min<std::int64_t>(kTile, matrix_rows() - t * kTile));
      source.release(row, count);
    }
  });
}

// Rows first .. first + count of `rows` become tile t; missing rows are zeros.
void PackedWeight::pack_tile(const Kernels& kernels, std::int64_t t, const WeightRows& rows,
                             std::int64_t first, std::int64_t count) {
  const std::int64_t k = format_.k, groups = format_.groups();
  std::uint8_t* out = codes_.data() + t * tiles_.tile_bytes;
  const WeightType type = format_.type;
  if (!is_quantised(type)) {
    float column[kTile] = {};
    for (std::int64_t c = 0; c < k; ++c) {  // columns and rows past the end stay zero, as mapped
      for (std::int64_t r = 0; r < count; ++r)
        column[r] = rows.values[static_cast<std::size_t>((first + r) * k + c)];
      if (type == WeightType::F32)
        std::memcpy(out + c * kTile * 4, column, sizeof column);
      else if (type == WeightType::F16)
        kernels.to_half(column, kTile, reinterpret_cast<std::uint16_t*>(out) + c * kTile);
      else
        for (int r = 0; r < kTile; ++r)
          reinterpret_cast<std::uint16_t*>(out)[c * kTile + r] = float_to_bf16(column[r]);
    }
    return;
  }
  for (std::int64_t r = 0; r < count; ++r) {
    const std::uint8_t* in = rows.codes.data() + (first + r) * k;
    if (type == WeightType::Int8) {
      for (std::int64_t c = 0; c < k; c += 4) std::memcpy(out + c / 4 * 64 + r * 4, in + c, 4);
    } else {
      for (std::int64_t c = 0; c < k; c += 8) {  // k is a multiple of the group, so of 32
        std::uint32_t low, high;
        std::memcpy(&low, in + c, 4), std::memcpy(&high, in + c + 4, 4);
        low |= high << 4;
        std::memcpy(out + c / 8 * 64 + r * 4, &low, 4);
      }
    }
  }
  const auto store = [&](const std::vector<float>& in, std::uint8_t* base) {
    for (std::int64_t g = 0; g < groups; ++g)
      for (std::int64_t r = 0; r < kTile; ++r) {
        const std::int64_t at = (t * groups + g) * kTile + r;
        const float v = r < count ? in[static_cast<std::size_t>((first + r) * groups + g)] : 0.0f;
        if (format_.scales_are_f16)
          reinterpret_cast<std::uint16_t*>(base)[at] = float_to_half(v);
        else
          reinterpret_cast<float*>(base)[at] = v;
      }
  };
  store(rows.scales, scales_.data());
  if (type == WeightType::Int4Aff) store(rows.offsets, offsets_.data());
}

void PackedWeight::row(std::int64_t r, float* out) const {
  const std::int64_t t = r / kTile, lane = r % kTile, groups = format_.groups();
  const std::uint8_t* codes = codes_.data() + t * tiles_.tile_bytes;
  const auto scale = [&](const Array<std::uint8_t>& a, std::int64_t g) {
    const std::int64_t at = (t * groups + g) * kTile + lane;
    return format_.scales_are_f16
               ? half_to_float(reinterpret_cast<const std::uint16_t*>(a.data())[at])
               : reinterpret_cast<const float*>(a.data())[at];
  };
  for (std::int64_t c = 0; c < format_.k; ++c) {
    const std::int64_t value = c * kTile + lane;
    const int nibble = (codes[c / 8 * 64 + lane * 4 + c % 4] >> (c / 4 % 2 * 4)) & 15;
    switch (format_.type) {
      case WeightType::Int4:
        out[c] = static_cast<float>(nibble - 8) * scale(scales_, c / format_.group);
        break;
      case WeightType::Int4Aff:
        out[c] = static_cast<float>(nibble) * scale(scales_, c / format_.group) +
                 scale(offsets_, c / format_.group);
        break;
      case WeightType::Int8:
        out[c] =
            static_cast<float>(static_cast<std::int8_t>(codes[c / 4 * 64 + lane * 4 + c % 4])) *
            scale(scales_, c / format_.group);
        break;
      case WeightType::F16:
        out[c] = half_to_float(reinterpret_cast<const std::uint16_t*>(codes)[value]);
        break;
      case WeightType::BF16:
        out[c] = bf16_to_float(reinterpret_cast<const std::uint16_t*>(codes)[value]);
        break;
      case WeightType::F32:
        out[c] = reinterpret_cast<const float*>(codes)[value];
        break;
    }
  }
}

}  // namespace nibble::cpu
