#include <cmath>
#include <map>

#include "harness.h"
#include "ops/attention.h"

namespace nibble {
namespace {

using harness::Buffer;
using harness::random_floats;
using harness::same_bits;

struct Case {
  std::int64_t heads, kv_heads, head_dim, rotary;
  KvType type;
  bool norm, gated;
  std::vector<RowPlace> rows;  // of a step; all before them are in the cache
  bool in_one = true;          // a device with clusters takes it in one launch
};

struct Result {
  std::vector<float> out, cached;  // cached: keys and values of the last four positions of each row
  bool rotates = true;             // q_out was written: there were two launches
};

// Two steps: the rows', and the ones that follow.
Result run(Backend& b, const Case& c, bool together) {
  const std::int64_t pitch = c.gated ? 2 * c.head_dim : c.head_dim, kw = c.kv_heads * c.head_dim;
  std::int32_t slots = 0, longest = 0;
  std::map<std::int32_t, std::int32_t> past;
  for (const RowPlace& r : c.rows) {
    slots = std::max(slots, r.slot + 1), longest = std::max(longest, r.position + 2);
    if (!past.contains(r.slot)) past[r.slot] = r.position;
  }
  const auto cache = b.make_kv_cache({.layers = 2,
                                      .slots = slots,
                                      .kv_heads = c.kv_heads,
                                      .head_dim = c.head_dim,
                                      .context = longest,
                                      .type = c.type});
  Buffer norm(b, random_floats(static_cast<std::size_t>(c.head_dim), 4));
  Result r;
  const auto step = [&](const std::vector<RowPlace>& rows, unsigned seed, bool past_only) {
    const auto m = static_cast<std::int64_t>(rows.size());
    const auto random = [&](std::int64_t n, unsigned of) {
      return random_floats(static_cast<std::size_t>(n), 10 * seed + of);
    };
    Buffer q(b, random(m * c.heads * pitch, 1)), k(b, random(m * kw, 2)), v(b, random(m * kw, 3));
    Buffer q_out(b, static_cast<std::size_t>(m * c.heads * c.head_dim)),
        out(b, static_cast<std::size_t>(m * c.heads * c.head_dim));
    std::vector<float> cs = random(m * c.rotary, 5);
    for (float& x : cs) x = std::sin(x);
    const RopeCacheArgs rope{.q = q.data(),
                             .q_pitch = pitch,
                             .k = k.data(),
                             .v = v.data(),
                             .q_norm = c.norm ? norm.data() : nullptr,
                             .k_norm = c.norm ? norm.data() : nullptr,
                             .unit_offset = c.gated,
                             .cos_sin = cs.data(),
                             .m = m,
                             .heads = c.heads,
                             .rotary = c.rotary,
                             .rows = rows.data(),
                             .cache = cache.get(),
                             .layer = 1,
                             .q_out = q_out.data()};
    if (past_only) return b.rope_cache(rope);
    const AttentionArgs attention{.q = q_out.data(),
                                  .gate = c.gated ? q.data() + c.head_dim : nullptr,
                                  .gate_pitch = pitch,
                                  .m = m,
                                  .heads = c.heads,
                                  .scale = 0.1f,
                                  .rows = rows.data(),
                                  .cache = cache.get(),
                                  .layer = 1,
                                  .out = out.data()};
    if (together) {
      b.rope_attention(rope, attention);
    } else {
      b.rope_cache(rope), b.attention(attention);
    }
    const std::vector<float> o = out.copy(), rotated = q_out.copy();
    r.rotates = !std::isnan(rotated[0]);
    r.out.insert(r.out.end(), o.begin(), o.end());
  };
  std::vector<RowPlace> before, next = c.rows;
  for (const auto& [slot, end] : past)
    for (std::int32_t p = 0; p < end; ++p) before.push_back({slot, p});
  if (!before.empty()) step(before, 1, true);
  step(c.rows, 2, false);
  for (RowPlace& row : next) ++row.position;
  if (own_slots(c.rows)) step(next, 3, false);
  for (const RowPlace& row : next)
    for (std::int64_t h = 0; h < c.kv_heads; ++h)
      for (std::int32_t p = std::max(0, row.position - 3); p <= row.position; ++p) {
        std::vector<float> k(static_cast<std::size_t>(c.head_dim)), v(k.size());
        cache->read(1, row.slot, h, p, k.data(), v.data());
        r.cached.insert(r.cached.end(), k.begin(), k.end());
        r.cached.insert(r.cached.end(), v.begin(), v.end());
      }
  return r;
}

class RopeAttentionTest : public testing::TestWithParam<Case> {};

TEST_P(RopeAttentionTest, HasTheBitsOfItsParts) {
  const Result want = run(*harness::backends()[0], GetParam(), false);
  bool in_one = false;
  for (const auto& b : harness::backends()) {
    const Result r = run(*b, GetParam(), true);
    in_one = in_one || !r.rotates;
    EXPECT_TRUE(same_bits(r.out, want.out)) << b->describe();
    EXPECT_TRUE(same_bits(r.cached, want.cached)) << b->describe();
  }
#ifndef __SANITIZE_THREAD__  // cuda/emulated.cc says why
  EXPECT_EQ(in_one, GetParam().in_one);
#endif
}

const std::vector<RowPlace> kPlaces = {{2, 0}, {0, 63}, {5, 64}, {1, 510}, {3, 511}, {4, 600}};
INSTANTIATE_TEST_SUITE_P(
    All, RopeAttentionTest,
    testing::Values(Case{6, 1, 256, 64, KvType::I16, true, true, kPlaces},
                    Case{16, 2, 256, 64, KvType::I16, true, true, {{0, 130}}},
                    Case{9, 3, 64, 64, KvType::I16, false, false, kPlaces},
                    Case{10, 1, 128, 32, KvType::I16, true, false, {{1, 1055}, {0, 30}}},
                    Case{2, 2, 192, 10, KvType::I16, false, true, {{0, 1023}}},
                    Case{4, 2, 512, 512, KvType::I16, true, false, {{0, 70}, {1, 3}}},
                    // Many splits to put together, and more outputs than threads.
                    Case{3, 1, 64, 64, KvType::I16, true, true, {{0, 17000}}},
                    Case{16, 1, 256, 64, KvType::I16, true, true, {{0, 1030}}},
                    // Not taken in one launch: fp32, another head_dim, rows of one sequence, many
                    // short ones.
                    Case{3, 1, 64, 64, KvType::F32, true, true, kPlaces, false},
                    Case{3, 1, 72, 8, KvType::I16, true, true, kPlaces, false},
                    Case{6, 1, 64, 64, KvType::I16, true, true, {{0, 70}, {1, 5}, {0, 71}}, false},
                    Case{2,
                         1,
                         64,
                         64,
                         KvType::I16,
                         true,
                         true,
                         {{0, 9}, {1, 0}, {2, 70}, {3, 5}, {4, 1}},
                         false}));

TEST(RopeAttention, RefusesOtherRows) {
  Backend& b = *harness::backends()[0];
  const auto cache = b.make_kv_cache(
      {.layers = 1, .slots = 2, .kv_heads = 1, .head_dim = 8, .context = 4, .type = KvType::I16});
  Buffer x(b, 8), y(b, 8), z(b, 8);
  const float cs[8] = {};
  const RowPlace row{0, 0}, other{1, 0};
  const RopeCacheArgs rope{.q = x.data(),
                           .k = x.data(),
                           .v = x.data(),
                           .cos_sin = cs,
                           .m = 1,
                           .heads = 1,
                           .rotary = 8,
                           .rows = &row,
                           .cache = cache.get(),
                           .q_out = y.data()};
  AttentionArgs a{
      .q = y.data(), .m = 1, .heads = 1, .rows = &other, .cache = cache.get(), .out = z.data()};
  EXPECT_THROW(b.rope_attention(rope, a), Error);
  a.rows = &row;
  b.rope_attention(rope, a);
  a.q = x.data();
  EXPECT_THROW(b.rope_attention(rope, a), Error);
}

}  // namespace
}  // namespace nibble
