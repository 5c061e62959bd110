// Packing: the host's threads write rows into a buffer, as compact as they will stay; the device
// makes tiles of them (pack.cu) while the next are written.
#include "backend/cuda/pack.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "backend/cuda/cuda_backend.h"
#include "base/half.h"
#include "ops/pieces.h"

namespace nibble::NIBBLE_CUDA_NS {
namespace {

constexpr std::size_t kStaged = std::size_t{16} << 20;  // bytes at once; more for one long tile
constexpr std::int64_t kTask = std::int64_t{1} << 19;   // values that a thread reads at once

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

// Codes, whole chunks of 32, two a byte: pack.h says how. Eight at a time.
void fold(const std::vector<std::uint8_t>& codes, std::uint8_t* to) {
  for (const std::uint8_t *c = codes.data(), *end = c + codes.size(); c != end; c += 32, to += 16) {
    std::uint64_t x[4];
    std::memcpy(x, c, 32);
    const std::uint64_t both[] = {x[0] | x[2] << 4, x[1] | x[3] << 4};
    std::memcpy(to, both, 16);
  }
}

void store_scales(const std::vector<float>& scales, int bytes, std::uint8_t* to) {
  if (bytes == 2)
    std::transform(scales.begin(), scales.end(), reinterpret_cast<std::uint16_t*>(to),
                   float_to_half);
  else
    std::copy(scales.begin(), scales.end(), reinterpret_cast<float*>(to));
}

// Rows of k plain values, each with zeros after it.
void store_values(const std::vector<float>& values, std::int64_t k, WeightType type,
                  std::size_t row_bytes, std::uint8_t* to) {
  const std::size_t used = static_cast<std::size_t>(k) * (type == WeightType::F32 ? 4 : 2);
  for (const float *v = values.data(), *end = v + values.size(); v != end; v += k) {
    if (type == WeightType::F32)
      std::memcpy(to, v, used);
    else
      std::transform(v, v + k, reinterpret_cast<std::uint16_t*>(to),
                     type == WeightType::F16 ? float_to_half : float_to_bf16);
    std::memset(to + used, 0, row_bytes - used);
    to += row_bytes;
  }
}

}  // namespace

Staging::~Staging() { release_pinned(host_); }
std::uint8_t* Staging::fill(const Queue& q, std::size_t bytes) {
  if (bytes > device_.size()) {
    wait(q);
    release_pinned(host_);
    host_ = nullptr, device_ = {};
    host_ = allocate_pinned(2 * bytes);
    device_ = Block(bytes, "weights on their way");
  }
  return static_cast<std::uint8_t*>(host_) + turn_ * device_.size();
}
const std::uint8_t* Staging::send(const Queue& q, std::size_t bytes) {
  wait(q);  // what the other half held is there
  copy_in_later(q, device_.get(), static_cast<std::uint8_t*>(host_) + turn_ * device_.size(),
                bytes);
  turn_ ^= 1;
  return device_.as<std::uint8_t>();
}

// Fills in matrix_ and stages_, but for where things lie.
void CudaWeight::lay_out(int pieces, std::int64_t stack) {
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
}

CudaWeight::CudaWeight(const WeightSource& source, int pieces, std::int64_t stack, const Queue& q,
                       ThreadPool& pool, Arena& arena, Staging& staging)
    : Weight(source.format(), pieces, stack) {
  lay_out(pieces, stack);
  Matrix& m = matrix_;
  const bool quantised = is_quantised(format_.type);
  const std::int64_t rows = m.n, tiles = m.tiles * stack;
  codes_ = {static_cast<std::size_t>(tiles * m.stages * m.stage_bytes), "weights", &arena};
  if (quantised)
    scales_ = {static_cast<std::size_t>(tiles * m.groups * m.record_bytes), "weight scales",
               &arena};
  plan_ = {stages_.size() * sizeof(Stage), "a weight's plan", &arena};
  m.codes = codes_.as<std::uint8_t>(), m.scales = scales_.as<std::uint8_t>();
  m.plan = plan_.as<Stage>();
  bytes_ = codes_.size() + scales_.size();

  // Of what is staged: tiles' rows, their scales, their offsets, the plan.
  const std::size_t row_bytes =
      (static_cast<std::size_t>(m.stage_bytes / kTile) * static_cast<std::size_t>(m.k) / kStage +
       15) /
      16 * 16;
  const std::size_t scale_row = static_cast<std::size_t>(m.groups * m.scale_bytes),
                    tile_bytes =
                        kTile * row_bytes + static_cast<std::size_t>(m.groups * m.record_bytes);
  const std::int64_t at_once =
      std::clamp<std::int64_t>(static_cast<std::int64_t>(kStaged / tile_bytes), 1, tiles);
  const std::int64_t per_task = std::max<std::int64_t>(1, kTask / (kTile * format_.k));
  std::vector<WeightRows> read(static_cast<std::size_t>(pool.size()));  // by thread
  std::atomic<bool> fits_half{true};
  constexpr float kLargestScale = 65504.0f / 8;
  for (std::int64_t first = 0; first < tiles; first += at_once) {
    const std::int64_t last = std::min(tiles, first + at_once);
    const auto staged_rows = static_cast<std::size_t>((last - first) * kTile);
    const std::size_t plan_at = static_cast<std::size_t>(last - first) * tile_bytes;
    std::uint8_t* const to = staging.fill(q, plan_at + plan_.size());
    std::uint8_t* const scales = to + staged_rows * row_bytes;
    std::memcpy(to + plan_at, stages_.data(), plan_.size());
    struct Part {
      std::int64_t row, count, at;  // of the source; of this run, first
    };
    std::vector<Part> parts;  // none crosses from one matrix to the next
    for (std::int64_t tile = first; tile < last;) {
      const std::int64_t matrix = tile / m.tiles, row = tile % m.tiles * kTile,
                         stop = std::min({last, tile + per_task, (matrix + 1) * m.tiles});
      parts.push_back({matrix * rows + row, std::min((stop - tile) * kTile, rows - row),
                       (tile - first) * kTile});
      tile = stop;
    }
    std::atomic<std::size_t> next{0};
    pool.run([&](int thread) {
      WeightRows& some = read[static_cast<std::size_t>(thread)];
      for (std::size_t i; (i = next.fetch_add(1)) < parts.size();) {
        source.read(parts[i].row, parts[i].count, some);
        const auto at = static_cast<std::size_t>(parts[i].at);
        if (format_.type == WeightType::Int8)
          std::memcpy(to + at * row_bytes, some.codes.data(), some.codes.size());
        else if (quantised)
          fold(some.codes, to + at * row_bytes);
        else
          store_values(some.values, format_.k, format_.type, row_bytes, to + at * row_bytes);
        store_scales(some.scales, m.scale_bytes, scales + at * scale_row);
        store_scales(some.offsets, m.scale_bytes, scales + (staged_rows + at) * scale_row);
        for (const float s : some.scales)
          if (!(std::abs(s) <= kLargestScale)) fits_half = false;
        source.release(parts[i].row, parts[i].count);
      }
    });
    const std::uint8_t* const staged = staging.send(q, plan_at + plan_.size());
    Matrix packed = m;
    packed.plan = reinterpret_cast<const Stage*>(staged + plan_at);
    launch_pack(q, {packed, codes_.as<std::uint8_t>(), scales_.as<std::uint8_t>(), staged,
                    static_cast<std::int64_t>(row_bytes), first, static_cast<int>(last - first)});
    // Last of all, and no launch: so none may begin before the tiles are there.
    if (last == tiles) copy_within(q, plan_.get(), packed.plan, plan_.size());
  }
  m.fits_half = fits_half;
}

}  // namespace nibble::NIBBLE_CUDA_NS
