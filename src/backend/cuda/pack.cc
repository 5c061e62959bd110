// Packing: canonical rows -> tiles of 16 rows in stages of 64 columns (kernels.h says how), a run
// of tiles at a time, on the host; then to the device.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>

#include "backend/cuda/cuda_backend.h"
#include "base/half.h"
#include "ops/pieces.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

int stage_bytes(WeightType t) {
  switch (t) {
    case WeightType::Int4:
    case WeightType::Int4Aff:
      return kTile * kStage / 2;
    case WeightType::Int8:
      return kTile * kStage;
    case WeightType::F16:
    case WeightType::BF16:
      return kTile * kStage * 2;
    case WeightType::F32:
      return kTile * kStage * 4;
  }
  return 0;
}

// 32 codes of row r of a tile, chunk `chunk` of a stage: four bytes at a time.
void pack_chunk(WeightType type, const std::uint8_t* codes, std::int64_t chunk, std::int64_t r,
                std::uint8_t* stage) {
  for (std::int64_t i = 0; i < 4; ++i) {
    std::uint32_t low, high;
    std::memcpy(&low, codes + 4 * i, 4), std::memcpy(&high, codes + 16 + 4 * i, 4);
    std::uint8_t* lane = stage + (r % 8 * 4 + i) * 16 + r / 8 * 4;
    if (type == WeightType::Int8) {
      std::memcpy(lane + chunk * 512, &low, 4), std::memcpy(lane + chunk * 512 + 8, &high, 4);
    } else {
      low |= high << 4;
      std::memcpy(lane + chunk * 8, &low, 4);
    }
  }
}

}  // namespace

CudaWeight::CudaWeight(const WeightSource& source, int pieces, std::int64_t stack, const Queue& q,
                       ThreadPool& pool, Arena& arena)
    : Weight(source.format(), pieces, stack) {
  require(stack > 0 && format_.n % stack == 0, "[pack] expected {} rows in {} equal matrices",
          format_.n, stack);
  const KPlan plan = plan_k(format_.k, format_.group, pieces);
  Matrix& m = matrix_;
  m.type = static_cast<int>(format_.type), m.scale_bytes = format_.scales_are_f16 ? 2 : 4;
  m.stages = plan.blocks, m.stage_bytes = stage_bytes(format_.type);
  m.groups = static_cast<int>(format_.groups());
  const bool affine = format_.type == WeightType::Int4Aff;
  if (is_quantised(format_.type)) m.record_bytes = kTile * m.scale_bytes * (affine ? 2 : 1);
  const std::int64_t rows = format_.n / stack;
  m.n = static_cast<int>(rows), m.k = static_cast<int>(format_.k);
  m.tiles = static_cast<int>((rows + kTile - 1) / kTile), m.pieces = pieces;
  for (int b = 0; b < plan.blocks; ++b) {
    const auto at = static_cast<std::size_t>(b);
    stages_.push_back(
        {plan.block_chunk[at] * kChunk, plan.block_chunk[at + 1] - plan.block_chunk[at], 0, 0});
  }
  for (const Unit& u : plan.units) {
    Stage& s = stages_[static_cast<std::size_t>(u.block)];
    if (s.units++ == 0) s.group = u.group;
    m.max_units = std::max(m.max_units, s.units);
    for (int p = u.piece; p < pieces; ++p) m.piece_end[p] = u.block + 1;
  }
  m.entries = m.max_units + (affine ? 2 : 0);
  m.regular = true;
  for (std::size_t i = 0; i < stages_.size(); ++i)
    m.regular = m.regular && stages_[i].column == static_cast<int>(i) * kStage;
  for (int shift = 0; m.regular && m.max_units == 1 && shift < 16; ++shift)
    if (format_.group == kStage << shift) m.group_shift = shift;

  const auto tiles = static_cast<std::size_t>(m.tiles * stack);
  const std::size_t tile_bytes = static_cast<std::size_t>(m.stages) *
                                 static_cast<std::size_t>(m.stage_bytes),
                    record_bytes = static_cast<std::size_t>(m.groups) *
                                   static_cast<std::size_t>(m.record_bytes);
  codes_ = {tiles * tile_bytes, "weights", &arena};
  if (record_bytes > 0) scales_ = {tiles * record_bytes, "weight scales", &arena};
  plan_ = {stages_.size() * sizeof(Stage), "a weight's plan", &arena};
  copy_in(q, plan_.get(), stages_.data(), plan_.size());
  m.codes = codes_.as<std::uint8_t>(), m.scales = scales_.as<std::uint8_t>();
  m.plan = plan_.as<Stage>();
  bytes_ = codes_.size() + scales_.size();

  const std::int64_t per_read =
      std::clamp<std::int64_t>((std::int64_t{1} << 20) / (kTile * format_.k), 1, 64);  // tiles
  const std::int64_t reads = (m.tiles + per_read - 1) / per_read;  // of a matrix
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> fits_half{true};
  constexpr float kLargestScale = 65504.0f / 8;
  std::mutex queue;
  pool.run([&](int) {
    WeightRows canonical;
    std::vector<std::uint8_t> codes, records;
    for (;;) {
      const std::int64_t task = next.fetch_add(1), matrix = task / reads;
      if (matrix >= stack_) return;
      const std::int64_t first = task % reads * per_read,
                         last = std::min<std::int64_t>(m.tiles, first + per_read);
      const std::int64_t row = matrix * rows + first * kTile,
                         count = std::min(rows, last * kTile) - first * kTile;
      source.read(row, count, canonical);
      for (const float s : canonical.scales)
        if (!(std::abs(s) <= kLargestScale)) fits_half = false;
      const auto n = static_cast<std::size_t>(last - first);
      codes.assign(n * tile_bytes, 0), records.assign(n * record_bytes, 0);
      for (std::int64_t t = first; t < last; ++t) {
        const auto i = static_cast<std::size_t>(t - first);
        pack_tile(canonical, (t - first) * kTile, std::min<std::int64_t>(kTile, rows - t * kTile),
                  codes.data() + i * tile_bytes, records.data() + i * record_bytes);
      }
      source.release(row, count);
      const auto at = static_cast<std::size_t>(matrix * m.tiles + first);
      const std::lock_guard lock(queue);
      copy_in(q, codes_.as<std::uint8_t>() + at * tile_bytes, codes.data(), codes.size());
      if (!records.empty())
        copy_in(q, scales_.as<std::uint8_t>() + at * record_bytes, records.data(), records.size());
    }
  });
  m.fits_half = fits_half;
}

// Rows first .. first + count of `rows` -> one tile, zeros elsewhere.
void CudaWeight::pack_tile(const WeightRows& rows, std::int64_t first, std::int64_t count,
                           std::uint8_t* codes, std::uint8_t* records) const {
  const std::int64_t k = format_.k;
  const WeightType type = format_.type;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    const Stage& s = stages_[i];
    std::uint8_t* stage = codes + i * static_cast<std::size_t>(matrix_.stage_bytes);
    const std::int64_t columns = std::min<std::int64_t>(32 * s.chunks, k - s.column);
    for (std::int64_t r = 0; r < count; ++r) {
      const std::int64_t from = (first + r) * k + s.column;
      if (is_quantised(type)) {
        for (std::int64_t j = 0; j < columns; j += 32)  // groups are of whole chunks
          pack_chunk(type, rows.codes.data() + from + j, j / 32, r, stage);
        continue;
      }
      for (std::int64_t j = 0; j < columns; ++j) {
        const float v = rows.values[static_cast<std::size_t>(from + j)];
        const std::int64_t per = type == WeightType::F32 ? 4 : 8;
        std::uint8_t* at = stage + (j / per * kTile + r) * 16 + j % per * (16 / per);
        const std::uint16_t bits = type == WeightType::F16 ? float_to_half(v) : float_to_bf16(v);
        if (type == WeightType::F32)
          std::memcpy(at, &v, 4);
        else
          std::memcpy(at, &bits, 2);
      }
    }
  }
  const auto store = [&](const std::vector<float>& in, std::int64_t at) {
    for (std::int64_t g = 0; g < matrix_.groups; ++g)
      for (std::int64_t r = 0; r < count; ++r) {
        const float v = in[static_cast<std::size_t>((first + r) * matrix_.groups + g)];
        std::uint8_t* to = records + g * matrix_.record_bytes +
                           (at + scale_place(static_cast<int>(r))) * matrix_.scale_bytes;
        const std::uint16_t half = float_to_half(v);
        if (matrix_.scale_bytes == 2)
          std::memcpy(to, &half, 2);
        else
          std::memcpy(to, &v, 4);
      }
  };
  if (is_quantised(type)) store(rows.scales, 0);
  if (type == WeightType::Int4Aff) store(rows.offsets, kTile);
}

}  // namespace nibble::NIBBLE_CUDA_NS
