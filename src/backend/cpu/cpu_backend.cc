#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>

namespace nibble::cpu {

// Prepared input rows, grown on demand and kept.
struct CpuBackend::Rows {
  std::vector<XRow> rows;
  std::vector<float> f, sum, scale;
  std::vector<std::int8_t> lo, hi;
  std::vector<std::int16_t> q;
  std::vector<std::int32_t> minus8;
  std::vector<Panel> panels;
  Array<std::int8_t> panel_bytes;
  std::vector<float> panel_scale, panel_sum;

  // single: every row's words one after the other, those of full blocks of eight too.
  void resize(std::int64_t m, const KPlan& p, bool fixed, bool plain, bool single = false) {
    const auto grow = [](auto& v, std::int64_t n) {
      if (v.size() < static_cast<std::size_t>(n)) v.resize(static_cast<std::size_t>(n));
    };
    const std::int64_t k = p.padded_k, chunks = k / kChunk;
    grow(sum, m * chunks);
    if (plain) grow(f, m * k);
    if (fixed)
      grow(lo, m * k), grow(hi, m * k), grow(q, m * k), grow(minus8, m * chunks),
          grow(scale, m * p.blocks);
    grow(rows, m);
    for (std::int64_t i = 0; i < m; ++i) {
      // Row i of a full block of eight starts its words i % 8 after the block's first.
      const bool block = !single && stride(i, m) != 1;
      const std::int64_t first = block ? i / kMaxRows * kMaxRows : i, lane = i - first;
      rows[static_cast<std::size_t>(i)] = {
          f.data() + i * k,
          lo.data() + first * k + lane * 4,
          hi.data() + i * k,
          q.data() + first * k + lane * 2,
          minus8.data() + first * chunks + lane,
          scale.data() + first * p.blocks + lane,
          sum.data() + (fixed ? first : i) * chunks + (fixed ? lane : 0)};
    }
  }
  void resize_panels(std::int64_t m, const KPlan& p, int limbs) {
    const std::int64_t count = (m + kPanelRows - 1) / kPanelRows,
                       bytes = p.blocks * limbs * kPanelRows * kBlock,
                       scales = p.blocks * kPanelRows, sums = p.padded_k / kChunk * kPanelRows;
    if (panel_bytes.size() < static_cast<std::size_t>(count * bytes + kChunk))
      panel_bytes = {static_cast<std::size_t>(count * bytes + kChunk), "input rows"};
    panel_scale.resize(std::max(panel_scale.size(), static_cast<std::size_t>(count * scales)));
    panel_sum.resize(std::max(panel_sum.size(), static_cast<std::size_t>(count * sums)));
    panels.clear();
    for (std::int64_t i = 0; i < count; ++i)
      panels.push_back({panel_bytes.data() + i * bytes, panel_scale.data() + i * scales,
                        panel_sum.data() + i * sums});
  }
  // Copies row i, prepared, to its panel.
  void to_panel(std::int64_t i, const XRow& x, const KPlan& p, int limbs) {
    const Panel& to = panels[static_cast<std::size_t>(i / kPanelRows)];
    const std::int64_t lane = i % kPanelRows;
    for (std::int64_t b = 0; b < p.blocks; ++b) {
      const std::int64_t first = p.block_chunk[static_cast<std::size_t>(b)],
                         chunks = p.block_chunk[static_cast<std::size_t>(b) + 1] - first;
      std::int8_t* bytes = to.bytes + (b * limbs * kPanelRows + lane) * kBlock;
      for (std::int64_t c = 0; c < chunks; ++c) {  // a constant size: no calls
        std::memcpy(bytes + c * kChunk, x.lo + (first + c) * kChunk, kChunk);
        if (limbs == 2)
          std::memcpy(bytes + kPanelRows * kBlock + c * kChunk, x.hi + (first + c) * kChunk,
                      kChunk);
      }
      to.scale[b * kPanelRows + lane] = x.scale[b];
      for (std::int64_t c = first; c < first + chunks; ++c)
        to.sum[c * kPanelRows + lane] = x.sum[c];
    }
  }
  // Between the words of row i of m.
  static int stride(std::int64_t i, std::int64_t m) {
    return m - i / kMaxRows * kMaxRows >= kMaxRows ? kWordStride<kMaxRows> : 1;
  }
};

namespace {

const PackedWeight& packed(const LinearOutput& o) { return static_cast<const PackedWeight&>(*o.w); }

// Up to this many rows every thread prepares its own copy of the input: no barrier, and nobody
// reads what another writes. Beyond, rows are prepared once, in parallel. The bits are the same.
constexpr std::int64_t kOwnRows = 8;

// Parts of at least 64 rows that a tile's rows are shared out in, so that threads find enough items
// to end together.
int row_parts(std::int64_t m, std::int64_t tiles, int threads) {
  int parts = 1;
  while (m >= 128 * parts && tiles * parts < 16 * threads) parts *= 2;
  return parts;
}

}  // namespace

CpuBackend::CpuBackend(int threads, Isa isa) : CpuBackend(threads, kernels(isa), false) {}
CpuBackend::CpuBackend(int threads, const Kernels& kernels, bool guarded)
    : pool_(threads),
      kernels_(kernels),
      guarded_(guarded),
      shares_(pool_.size()),
      scratch_(static_cast<std::size_t>(pool_.size())) {
  for (int t = 0; t < pool_.size(); ++t) rows_.push_back(std::make_unique<Rows>());
  for (auto& rows : expert_rows_) rows = std::make_unique<Rows>();
}
CpuBackend::~CpuBackend() = default;

std::string CpuBackend::describe() const {
  return fmt::format("cpu {}, {} threads", kernels_.name, pool_.size());
}

Backend::Buffer CpuBackend::alloc(std::size_t bytes) {
  const auto a = allocate(bytes, "a buffer", false, false);
  return Buffer(reinterpret_cast<std::byte*>(a.get()), [a](std::byte*) {});
}
void CpuBackend::upload(void* device, const void* host, std::size_t bytes) {
  if (bytes > 0) std::memcpy(device, host, bytes);
}
void CpuBackend::download(void* host, const void* device, std::size_t bytes) {
  if (bytes > 0) std::memcpy(host, device, bytes);
}

std::unique_ptr<Weight> CpuBackend::pack(const WeightSource& source, int pieces,
                                         std::int64_t stack) {
  return std::make_unique<PackedWeight>(source, pieces, stack, kernels_, pool_, guarded_);
}
float* CpuBackend::scratch(int thread, std::int64_t n) {
  std::vector<float>& s = scratch_[static_cast<std::size_t>(thread)];
  if (s.size() < static_cast<std::size_t>(n)) s.resize(static_cast<std::size_t>(n));
  return s.data();
}

XRow* CpuBackend::single_rows(int set, std::int64_t m, const KPlan& plan, bool fixed, bool plain) {
  Rows& rows = *expert_rows_[set];
  rows.resize(m, plan, fixed, plain, true);
  return rows.rows.data();
}

void CpuBackend::gather(const float* src, const std::int32_t* rows, std::int64_t m,
                        std::int64_t width, float* dst) {
  for (std::int64_t i = 0; i < m; ++i)
    std::memcpy(dst + i * width, src + rows[i] * width,
                static_cast<std::size_t>(width) * sizeof(float));
}

void CpuBackend::top_logits(const TopLogitsArgs& a) {  // nobody waits for it: logits lie here
  check(a);
  for (std::int64_t i = 0; i < a.m; ++i)
    a.bad[i] = top_logits_reference(a.logits + i * a.n, a.n, a.values + i * kTopLogits,
                                    a.ids + i * kTopLogits);
}

void CpuBackend::embedding(const EmbeddingArgs& a) {
  check(a);
  const auto& w = static_cast<const PackedWeight&>(*a.w);
  pool_.run([&](int thread) {
    const Part p = part(a.m, thread, pool_.size());
    for (std::int64_t i = p.begin; i < p.end; ++i) w.row(a.ids[i], a.h + i * w.format().k);
  });
}

// Units of 32 columns leave the matrix unit half empty: fewer than 16 rows are faster without.
bool CpuBackend::wide(std::int64_t m, Activations a, std::span<const LinearOutput> outputs) const {
  if (a == Activations::Fp32 || kernels_.wide[0][0] == nullptr) return false;
  int least = kMaxRows;
  for (const LinearOutput& o : outputs)
    if (is_quantised(o.w->format().type) && o.w->format().group < kBlock) least = kPanelRows;
  return m >= least;
}

namespace {
// With SwiGLU the second matrix has no tiles of its own: they go with the first one's.
std::span<const LinearOutput> with_tiles(std::span<const LinearOutput> outputs, Epilogue e) {
  return e == Epilogue::SwiGlu ? outputs.first(1) : outputs;
}
}  // namespace

// Items [begin, end): every tile of an output with the first part of the rows, then with the second
// ..., outputs laid end to end; those up to `ahead` are next. A thread's items share their rows.
void CpuBackend::multiply(const Rows& rows, std::int64_t m, int parts,
                          std::span<const LinearOutput> outputs, Epilogue epilogue,
                          Activations activations, std::int64_t begin, std::int64_t end,
                          std::int64_t ahead) const {
  const bool swiglu = epilogue == Epilogue::SwiGlu;
  const bool many = wide(m, activations, outputs);
  const int step = many ? kWideRows : kMaxRows;
  float y[kWideRows * kTile], up[kWideRows * kTile];
  const auto run = [&](const LinearOutput& o, std::int64_t tile, std::int64_t next,
                       std::int64_t row, int count, float* out) {
    const PackedWeight& w = packed(o);
    const int type = static_cast<int>(w.format().type), mode = static_cast<int>(activations);
    if (many && is_quantised(w.format().type)) {
      kernels_.wide[type][mode](w.tiles(), tile, next, rows.panels.data() + row / kPanelRows, count,
                                out);
    } else {
      const XRow* x = rows.rows.data() + row;
      for (int r = 0; r < count;) {
        const int left = count - r, which = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;
        kernels_.tile[type][mode][which](w.tiles(), tile, r == 0 ? next : 0, x + r,
                                         out + r * kTile);
        r += 1 << which;
      }
    }
    if (o.bias == nullptr) return;
    const std::int64_t n = std::min<std::int64_t>(kTile, w.format().n - tile * kTile);
    for (int r = 0; r < count; ++r)
      for (std::int64_t j = 0; j < n; ++j) out[r * kTile + j] += o.bias[tile * kTile + j];
  };
  const auto cut = [&](std::int64_t part) {
    const std::int64_t panels = (m + kPanelRows - 1) / kPanelRows;
    return std::min(m, panels * part / parts * kPanelRows);
  };
  std::int64_t first = 0;
  for (const LinearOutput& o : with_tiles(outputs, epilogue)) {
    const std::int64_t tiles = packed(o).tile_count(), items = tiles * parts,
                       n = packed(o).format().n;
    for (std::int64_t t = std::max(begin, first); t < std::min(end, first + items); ++t) {
      const std::int64_t part = (t - first) / tiles, tile = (t - first) % tiles,
                         next = std::min(ahead - t + tile, tiles),
                         columns = std::min<std::int64_t>(kTile, n - tile * kTile);
      for (std::int64_t row = cut(part), stop = cut(part + 1); row < stop;) {
        const int count = static_cast<int>(std::min<std::int64_t>(stop - row, step));
        const std::int64_t first_rows = row == cut(part) ? next : 0;
        run(o, tile, first_rows, row, count, y);
        if (swiglu) {
          run(outputs[1], tile, first_rows, row, count, up);
          for (int r = 0; r < count; ++r)
            kernels_.swiglu(y + r * kTile, up + r * kTile, y + r * kTile);
        }
        float* to = o.y + row * o.ldy + tile * kTile;
        if (columns == kTile)  // a constant size: no calls
          for (int r = 0; r < count; ++r)
            std::memcpy(to + r * o.ldy, y + r * kTile, kTile * sizeof(float));
        else
          for (int r = 0; r < count; ++r) std::copy_n(y + r * kTile, columns, to + r * o.ldy);
        row += count;
      }
    }
    first += items;
  }
}

// prepare(thread, row, XRow): rounds one input row.
template <class Prepare>
void CpuBackend::run_linear(std::int64_t m, std::int64_t k, Activations activations,
                            std::span<const LinearOutput> outputs, Epilogue epilogue, bool own_rows,
                            Prepare&& prepare) {
  refuse_half("linear", activations);
  bool fixed = false, plain = false;
  for (const LinearOutput& o : outputs) {
    const bool as_integers = is_quantised(o.w->format().type) && activations != Activations::Fp32;
    (as_integers ? fixed : plain) = true;
  }
  const KPlan& plan = packed(outputs[0]).plan();
  const bool single = wide(m, activations, outputs), panels = single && fixed;
  const int limbs = activations == Activations::Int16 ? 2 : 1;
  // With panels alone, a row is prepared where its thread had the one before: in the first cache.
  const bool apart = panels && !plain;
  const auto resize = [&](Rows& rows) {
    rows.resize(apart ? 1 : m, plan, fixed, plain, single);
    if (panels) rows.resize_panels(m, plan, limbs);
  };
  const auto row = [&](Rows& rows, int thread, std::int64_t i) {
    const float* x = prepare(thread, i);
    Rows& own = apart ? *rows_[static_cast<std::size_t>(thread)] : rows;
    const XRow& to = own.rows[static_cast<std::size_t>(apart ? 0 : i)];
    kernels_.prepare(x, k, plan.block_chunk.data(), plan.blocks, activations, fixed, plain,
                     single ? 1 : Rows::stride(i, m), to);
    if (panels) rows.to_panel(i, to, plan, limbs);
  };
  std::int64_t tiles = 0;
  for (const LinearOutput& o : with_tiles(outputs, epilogue)) tiles += packed(o).tile_count();
  const int parts = row_parts(m, tiles, pool_.size());
  shares_.reset(tiles * parts);
  const auto take = [&](const Rows& rows, int thread) {
    shares_.take(thread, [&](std::int64_t begin, std::int64_t end, std::int64_t run_end) {
      multiply(rows, m, parts, outputs, epilogue, activations, begin, end, run_end);
    });
  };
  if (own_rows) {
    pool_.run([&](int thread) {
      Rows& rows = *rows_[static_cast<std::size_t>(thread)];
      resize(rows);
      for (std::int64_t i = 0; i < m; ++i) row(rows, thread, i);
      take(rows, thread);
    });
    return;
  }
  Rows& rows = *rows_[0];
  resize(rows);
  if (apart)
    for (const auto& own : rows_) own->resize(1, plan, fixed, plain, single);
  pool_.run([&](int thread) {
    const Part p = part(m, thread, pool_.size());
    for (std::int64_t i = p.begin; i < p.end; ++i) row(rows, thread, i);
  });
  pool_.run([&](int thread) { take(rows, thread); });
}

void CpuBackend::linear(const LinearArgs& a) {
  check(a);
  run_linear(a.m, a.k, a.activations, a.outputs, a.epilogue, a.m <= kOwnRows,
             [&](int, std::int64_t i) { return a.x + i * a.k; });
}

void CpuBackend::add_rmsnorm_linear(const AddRmsNormLinearArgs& a) {
  check(a);
  const float offset = a.unit_offset ? 1.0f : 0.0f;
  const bool own_rows = a.plan == Plan::Auto ? a.m <= kOwnRows : a.plan == Plan::Fused;
  const auto prepare = [&](int thread, std::int64_t i) {
    float* u = scratch(thread, a.k);
    const float* delta = a.delta != nullptr ? a.delta + i * a.k : nullptr;
    kernels_.add_rmsnorm(a.residual + i * a.k, delta, a.weight, offset, a.eps, a.k, u);
    // Each element of the outputs is written by one thread: a slice of the row where every thread
    // prepares it, the whole row where one does.
    const bool slice = own_rows && !a.outputs.empty();
    const Part p = slice ? part(a.k, thread, pool_.size()) : Part{0, a.k};
    const std::int64_t at = i * a.k + p.begin, n = p.end - p.begin;
    if (a.residual_out != nullptr)
      kernels_.add(a.residual + at, delta != nullptr ? a.delta + at : nullptr, n,
                   a.residual_out + at);
    if (a.normed != nullptr)
      std::memcpy(a.normed + at, u + p.begin, static_cast<std::size_t>(n) * sizeof(float));
    return static_cast<const float*>(u);
  };
  if (!a.outputs.empty())
    return run_linear(a.m, a.k, a.activations, a.outputs, a.epilogue, own_rows, prepare);
  pool_.run([&](int thread) {
    const Part p = part(a.m, thread, pool_.size());
    for (std::int64_t i = p.begin; i < p.end; ++i) prepare(thread, i);
  });
}

void CpuBackend::gated_rmsnorm_linear(const GatedRmsNormLinearArgs& a) {
  check(a);
  const std::int64_t k = a.heads * a.dim;
  const auto prepare = [&](int thread, std::int64_t i) {
    float* u = scratch(thread, k);
    for (std::int64_t c = 0; c < k; c += a.dim)
      kernels_.gated_rmsnorm(a.o + i * k + c, a.z + i * k + c, a.weight, a.eps, a.dim, u + c);
    return static_cast<const float*>(u);
  };
  run_linear(a.m, k, a.activations, a.outputs, Epilogue::None, a.m <= kOwnRows, prepare);
}

}  // namespace nibble::cpu
