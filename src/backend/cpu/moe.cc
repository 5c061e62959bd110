// router and experts. Tokens are grouped by expert, so that a call reads an expert's weights once
// however many of its tokens chose it. Three passes, each of tiles or rows that one thread owns:
//   gate, up, SwiGLU   a tile of an expert's width, for its tokens            -> act
//   rounding           a (token, slot)'s act to the activation mode
//   down               16 outputs of every token: the pieces of each of its slots, then their sum
//                      in the order of slots; the grouping never shows in it
#include <algorithm>
#include <atomic>
#include <cstring>

#include "backend/cpu/cpu_backend.h"

namespace nibble::cpu {
namespace {

const PackedWeight& packed(const Weight* w) { return static_cast<const PackedWeight&>(*w); }

// One expert and the (token, slot) pairs that chose it. The shared expert is the last slot of all.
struct Group {
  const PackedWeight *gate, *up, *down;
  std::int64_t matrix;  // in the stacks
  std::vector<std::int32_t> tokens, slots;
  bool shared;
};

std::vector<Group> group_by_expert(const ExpertsArgs& a) {
  std::vector<Group> groups;
  std::vector<std::int32_t> where(static_cast<std::size_t>(a.gate->stack()), -1);
  for (std::int32_t t = 0; t < a.m; ++t)
    for (std::int32_t s = 0; s < a.top_k; ++s) {
      const std::int32_t e = a.ids[t * a.top_k + s];
      require(e >= 0 && e < a.gate->stack(), "[experts] expected ids below {}, got {}",
              a.gate->stack(), e);
      std::int32_t& at = where[static_cast<std::size_t>(e)];
      if (at < 0) {
        at = static_cast<std::int32_t>(groups.size());
        groups.push_back({&packed(a.gate), &packed(a.up), &packed(a.down), e, {}, {}, false});
      }
      Group& g = groups[static_cast<std::size_t>(at)];
      g.tokens.push_back(t), g.slots.push_back(s);
    }
  Group shared{
      &packed(a.shared_gate), &packed(a.shared_up), &packed(a.shared_down), 0, {}, {}, true};
  for (std::int32_t t = 0; t < a.m; ++t)
    shared.tokens.push_back(t), shared.slots.push_back(static_cast<std::int32_t>(a.top_k));
  groups.push_back(std::move(shared));
  return groups;
}

bool takes_integers(const PackedWeight& w, Activations a) {
  return is_quantised(w.format().type) && a != Activations::Fp32;
}

// f(first, count's logarithm) over n items in runs of 4, 2 and 1.
template <class F>
void in_fours(std::int64_t n, F&& f) {
  for (std::int64_t i = 0; i < n;) {
    const int which = n - i >= 4 ? 2 : n - i >= 2 ? 1 : 0;
    f(i, which);
    i += std::int64_t{1} << which;
  }
}

}  // namespace

void CpuBackend::router(const RouterArgs& a) {
  check(a);
  LinearOutput outputs[2];
  add_rmsnorm_linear(linear_part(a, outputs));
  const std::int64_t experts = a.router->format().n;
  const auto choose = [&](std::int64_t i) {
    kernels_.top_k(a.logits + i * experts, experts, a.top_k, a.ids + i * a.top_k,
                   a.weights + i * a.top_k);
  };
  if (a.m == 1) return choose(0);
  pool_.run([&](int thread) {
    const std::int64_t end = a.m * (thread + 1) / pool_.size();
    for (std::int64_t i = a.m * thread / pool_.size(); i < end; ++i) choose(i);
  });
}

void CpuBackend::experts(const ExpertsArgs& a) {
  check(a);
  refuse_half("experts", a.activations);
  const std::vector<Group> groups = group_by_expert(a);
  const PackedWeight &routed = packed(a.down), &shared = packed(a.shared_down);
  const std::int64_t slots = a.top_k + 1, width = routed.format().k,
                     shared_width = shared.format().k;
  const auto grow = [](std::vector<float>& v, std::int64_t n) {
    if (v.size() < static_cast<std::size_t>(n)) v.resize(static_cast<std::size_t>(n));
    return v.data();
  };
  float* act = grow(experts_act_, a.m * (a.top_k * width + shared_width));
  float* shared_act = act + a.m * a.top_k * width;
  const auto act_of = [&](const Group& g, std::size_t i) {
    return g.shared ? shared_act + g.tokens[i] * shared_width
                    : act + (g.tokens[i] * a.top_k + g.slots[i]) * width;
  };

  // Input rows, and later the rows of act: routed pairs first, then the shared expert's.
  const auto prepare = [&](const float* x, std::int64_t k, const KPlan& plan, bool fixed,
                           bool plain, const XRow& out) {
    kernels_.prepare(x, k, plan.block_chunk.data(), plan.blocks, a.activations, fixed, plain, 1,
                     out);
  };
  const KPlan& plan = packed(a.gate).plan();  // blocks depend on K alone: the shared expert's too
  const bool as_integers[] = {takes_integers(packed(a.gate), a.activations),
                              takes_integers(packed(a.shared_gate), a.activations)};
  const bool fixed = as_integers[0] || as_integers[1], plain = !as_integers[0] || !as_integers[1];
  XRow* x = single_rows(0, a.m, plan, fixed, plain);
  pool_.run([&](int thread) {
    const std::int64_t end = a.m * (thread + 1) / pool_.size();
    for (std::int64_t i = a.m * thread / pool_.size(); i < end; ++i)
      prepare(a.x + i * a.k, a.k, plan, fixed, plain, x[i]);
  });

  const auto kernel = [&](const auto& table, const PackedWeight& w) {
    return table[static_cast<int>(w.format().type)][static_cast<int>(a.activations)];
  };
  std::vector<std::int64_t> first = {0};  // task number of each group's first tile
  for (const Group& g : groups) first.push_back(first.back() + g.gate->matrix_tiles());
  std::atomic<std::int64_t> next{0};
  pool_.run([&](int) {
    for (std::int64_t task; (task = next.fetch_add(1)) < first.back();) {
      const auto at = static_cast<std::size_t>(std::upper_bound(first.begin(), first.end(), task) -
                                               first.begin() - 1);
      const Group& g = groups[at];
      const std::int64_t tile = task - first[at], tiles = g.gate->matrix_tiles(),
                         n = std::min<std::int64_t>(kTile, g.gate->matrix_rows() - tile * kTile);
      in_fours(static_cast<std::int64_t>(g.tokens.size()), [&](std::int64_t i, int which) {
        XRow rows[4];
        float gate[4 * kTile], up[4 * kTile];
        const int count = 1 << which;
        for (int r = 0; r < count; ++r) rows[r] = x[g.tokens[static_cast<std::size_t>(i + r)]];
        const std::int64_t t = g.matrix * tiles + tile, ahead = i == 0 ? (g.matrix + 1) * tiles : 0;
        kernel(kernels_.tile, *g.gate)[which](g.gate->tiles(), t, ahead, rows, gate);
        kernel(kernels_.tile, *g.up)[which](g.up->tiles(), t, ahead, rows, up);
        for (int r = 0; r < count; ++r) {
          kernels_.swiglu(gate + r * kTile, up + r * kTile, gate + r * kTile);
          std::memcpy(act_of(g, static_cast<std::size_t>(i + r)) + tile * kTile, gate + r * kTile,
                      static_cast<std::size_t>(n) * sizeof(float));
        }
      });
    }
  });

  const bool down_fixed = takes_integers(routed, a.activations),
             shared_down_fixed = takes_integers(shared, a.activations);
  XRow* rows = single_rows(0, a.m * a.top_k, routed.plan(), down_fixed, !down_fixed);
  XRow* shared_rows = single_rows(1, a.m, shared.plan(), shared_down_fixed, !shared_down_fixed);
  pool_.run([&](int thread) {
    const std::int64_t all = a.m * slots, end = all * (thread + 1) / pool_.size();
    for (std::int64_t i = all * thread / pool_.size(); i < end; ++i)
      if (const std::int64_t s = i - a.m * a.top_k; s < 0)
        prepare(act + i * width, width, routed.plan(), down_fixed, !down_fixed, rows[i]);
      else
        prepare(shared_act + s * shared_width, shared_width, shared.plan(), shared_down_fixed,
                !shared_down_fixed, shared_rows[s]);
  });

  const std::int64_t tiles = routed.matrix_tiles(), part = kRowParallelPieces * kTile;
  next = 0;
  pool_.run([&](int thread) {
    float* parts = scratch(thread, a.m * slots * part + slots);
    float* weights = parts + a.m * slots * part;
    for (std::int64_t tile; (tile = next.fetch_add(1)) < tiles;) {
      for (const Group& g : groups)
        in_fours(static_cast<std::int64_t>(g.tokens.size()), [&](std::int64_t i, int which) {
          XRow in[4];
          float* out[4];
          for (int r = 0; r < 1 << which; ++r) {
            const auto at = static_cast<std::size_t>(i + r);
            const std::int64_t t = g.tokens[at], s = g.slots[at];
            in[r] = g.shared ? shared_rows[t] : rows[t * a.top_k + s];
            out[r] = parts + (t * slots + s) * part;
          }
          kernel(kernels_.pieces, *g.down)[which](g.down->tiles(), g.matrix * tiles + tile, in,
                                                  out);
        });
      const std::int64_t n = std::min<std::int64_t>(kTile, a.k - tile * kTile);
      for (std::int64_t t = 0; t < a.m; ++t) {
        std::copy_n(a.weights + t * a.top_k, a.top_k, weights);
        weights[a.top_k] = kernels_.sigmoid(a.shared[t]);
        float y[kTile];
        kernels_.mix(parts + t * slots * part, weights, slots, kRowParallelPieces, y);
        std::memcpy(a.y + t * a.k + tile * kTile, y, static_cast<std::size_t>(n) * sizeof(float));
      }
    }
  });
}

}  // namespace nibble::cpu
