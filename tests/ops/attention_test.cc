#include "ops/attention.h"

#include "harness.h"

namespace nibble {
namespace {

using harness::Buffer;
using harness::random_floats;
using harness::same_bits;

struct Case {
  std::int64_t heads, kv_heads, head_dim, length;
  KvType type;
  bool norm;
  bool gated = false;  // [query | gate] a head, norms times 1 + weight, the output gated
  std::int64_t pitch() const { return gated ? 2 * head_dim : head_dim; }
};

struct Result {
  std::vector<float> out, q, projected;
  std::vector<float> keys, values;  // [kv_heads, length, head_dim] as the cache has them
};

// Feeds `length` positions in steps of `chunk` rows and returns every row's attention output.
Result feed(Backend& b, const Case& c, std::int64_t chunk, std::int64_t slot) {
  const std::int64_t qw = c.heads * c.head_dim, qg = c.heads * c.pitch(),
                     kw = c.kv_heads * c.head_dim, rotary = c.head_dim / 2 / 2 * 2;
  const auto cache = b.make_kv_cache({.layers = 2,
                                      .slots = 3,
                                      .kv_heads = c.kv_heads,
                                      .head_dim = c.head_dim,
                                      .context = c.length,
                                      .type = c.type});
  const std::vector<float> q = random_floats(static_cast<std::size_t>(c.length * qg), 1);
  const std::vector<float> k = random_floats(static_cast<std::size_t>(c.length * kw), 2);
  const std::vector<float> v = random_floats(static_cast<std::size_t>(c.length * kw), 3);
  const std::vector<float> norm = random_floats(static_cast<std::size_t>(c.head_dim), 4);
  std::vector<float> cs = random_floats(static_cast<std::size_t>(c.length * rotary), 5);
  for (float& x : cs) x = std::sin(x);
  Result r;
  r.projected = q;
  for (std::int64_t p = 0; p < c.length; p += chunk) {
    const std::int64_t m = std::min(chunk, c.length - p);
    std::vector<RowPlace> rows;
    for (std::int64_t i = 0; i < m; ++i)
      rows.push_back({static_cast<int>(slot), static_cast<int>(p + i)});
    const auto part = [&](const std::vector<float>& x, std::int64_t w) {
      return std::vector<float>(x.begin() + p * w, x.begin() + (p + m) * w);
    };
    Buffer qi(b, part(q, qg)), ki(b, part(k, kw)), vi(b, part(v, kw)), ni(b, norm);
    const std::vector<float> ci = part(cs, rotary);
    Buffer q_out(b, static_cast<std::size_t>(m * qw)), out(b, static_cast<std::size_t>(m * qw));
    b.rope_cache({.q = qi.data(),
                  .q_pitch = c.pitch(),
                  .k = ki.data(),
                  .v = vi.data(),
                  .q_norm = c.norm ? ni.data() : nullptr,
                  .k_norm = c.norm ? ni.data() : nullptr,
                  .unit_offset = c.gated,
                  .cos_sin = ci.data(),
                  .m = m,
                  .heads = c.heads,
                  .rotary = rotary,
                  .rows = rows.data(),
                  .cache = cache.get(),
                  .layer = 1,
                  .q_out = q_out.data()});
    const std::vector<float> qo = q_out.copy();
    for (std::int64_t i = 0; i < m; ++i)  // RoPE against its reference
      for (std::int64_t h = 0; h < c.heads; ++h) {
        std::vector<double> want(static_cast<std::size_t>(c.head_dim));
        rope_reference(q.data() + (p + i) * qg + h * c.pitch(), c.head_dim,
                       c.norm ? norm.data() : nullptr, c.gated, 1e-6, cs.data() + (p + i) * rotary,
                       rotary, want.data());
        for (std::int64_t d = 0; d < c.head_dim; ++d)
          EXPECT_NEAR(qo[static_cast<std::size_t>(i * qw + h * c.head_dim + d)],
                      want[static_cast<std::size_t>(d)], 2e-5);
      }
    b.attention({.q = q_out.data(),
                 .gate = c.gated ? qi.data() + c.head_dim : nullptr,
                 .gate_pitch = c.pitch(),
                 .m = m,
                 .heads = c.heads,
                 .scale = 0.125f,
                 .rows = rows.data(),
                 .cache = cache.get(),
                 .layer = 1,
                 .out = out.data()});
    const std::vector<float> o = out.copy();
    r.out.insert(r.out.end(), o.begin(), o.end());
    r.q.insert(r.q.end(), qo.begin(), qo.end());
  }
  r.keys.resize(static_cast<std::size_t>(kw * c.length)), r.values.resize(r.keys.size());
  for (std::int64_t h = 0; h < c.kv_heads; ++h)
    for (std::int64_t p = 0; p < c.length; ++p) {
      const std::int64_t at = (h * c.length + p) * c.head_dim;
      cache->read(1, slot, h, p, r.keys.data() + at, r.values.data() + at);
    }
  return r;
}

class AttentionTest : public testing::TestWithParam<Case> {};

TEST_P(AttentionTest, MatchesReferenceAndBitsAgree) {
  const Case c = GetParam();
  const auto& all = harness::backends();
  const Result r = feed(*all[0], c, 64, 0);
  const std::int64_t qw = c.heads * c.head_dim, ratio = c.heads / c.kv_heads;
  for (std::int64_t p = 0; p < c.length; p += 1 + c.length / 50)
    for (std::int64_t h = 0; h < c.heads; ++h) {
      std::vector<double> want(static_cast<std::size_t>(c.head_dim)), mag(want.size());
      const std::int64_t kv = h / ratio * c.length * c.head_dim;
      attention_reference(r.q.data() + p * qw + h * c.head_dim, r.keys.data() + kv,
                          r.values.data() + kv, p + 1, c.head_dim, 0.125, want.data(), mag.data());
      const float* gate = r.projected.data() + (p * c.heads + h) * c.pitch() + c.head_dim;
      if (c.gated)
        for (std::int64_t d = 0; d < c.head_dim; ++d)
          want[static_cast<std::size_t>(d)] /= 1 + std::exp(-static_cast<double>(gate[d]));
      for (std::int64_t d = 0; d < c.head_dim; ++d)
        ASSERT_LE(std::fabs(r.out[static_cast<std::size_t>(p * qw + h * c.head_dim + d)] -
                            want[static_cast<std::size_t>(d)]),
                  1e-5 * mag[static_cast<std::size_t>(d)] + 1e-7)
            << "position " << p << " head " << h << " dim " << d;
    }
  for (const auto& b : all) ASSERT_TRUE(same_bits(feed(*b, c, 64, 0).out, r.out)) << b->describe();
  // Any cut of the rows, down to one a step, and any slot.
  for (const std::int64_t chunk : {1, 7, 128})
    for (Backend* b : harness::last_two())
      ASSERT_TRUE(same_bits(feed(*b, c, chunk, 2).out, r.out)) << b->describe() << " " << chunk;
}

INSTANTIATE_TEST_SUITE_P(
    All, AttentionTest,
    testing::Values(Case{3, 1, 64, 150, KvType::F32, false}, Case{9, 3, 64, 70, KvType::I16, false},
                    Case{4, 4, 8, 65, KvType::F32, true}, Case{6, 2, 72, 64, KvType::I16, true},
                    Case{7, 1, 128, 33, KvType::F32, false}, Case{8, 2, 256, 66, KvType::I16, true},
                    Case{2, 1, 136, 70, KvType::I16, false},
                    Case{2, 1, 16, 1100, KvType::F32, false},
                    Case{6, 2, 64, 70, KvType::F32, true, true},
                    Case{3, 1, 256, 530, KvType::I16, true, true}));

// A sequence that met NaN leaves nothing behind for the next one in its slot.
TEST(Attention, ForgetsAnEarlierSequencesNaN) {
  for (const KvType type : {KvType::I16, KvType::F32})
    for (const auto& b : harness::backends()) {
      const auto cache = b->make_kv_cache(
          {.layers = 1, .slots = 1, .kv_heads = 1, .head_dim = 16, .context = 64, .type = type});
      const std::vector<float> cs(16, 0.5f);
      const auto step = [&](const std::vector<float>& values, std::int32_t position) {
        Buffer x(*b, values), q(*b, 16), out(*b, 16);
        const RowPlace row{0, position};
        b->rope_cache({.q = x.data(),
                       .k = x.data(),
                       .v = x.data(),
                       .cos_sin = cs.data(),
                       .m = 1,
                       .heads = 1,
                       .rotary = 16,
                       .rows = &row,
                       .cache = cache.get(),
                       .q_out = q.data()});
        b->attention({.q = q.data(),
                      .m = 1,
                      .heads = 1,
                      .scale = 1,
                      .rows = &row,
                      .cache = cache.get(),
                      .out = out.data()});
        return out.copy();
      };
      const std::vector<float> good = random_floats(16, 1), want = step(good, 0);
      for (std::int32_t p = 0; p < 64; ++p)
        EXPECT_TRUE(std::isnan(step(std::vector<float>(16, NAN), p)[0]));
      EXPECT_TRUE(same_bits(step(good, 0), want)) << b->describe();
    }
}

TEST(Attention, RefusesBadArguments) {
  Backend& b = *harness::backends()[0];
  const auto cache = b.make_kv_cache(
      {.layers = 1, .slots = 1, .kv_heads = 2, .head_dim = 16, .context = 8, .type = KvType::F32});
  std::vector<float> q(64), out(64);
  RowPlace row{0, 0};
  const auto run = [&](std::int64_t heads, float* o, std::int64_t layer) {
    b.attention({.q = q.data(),
                 .m = 1,
                 .heads = heads,
                 .scale = 1,
                 .rows = &row,
                 .cache = cache.get(),
                 .layer = layer,
                 .out = o});
  };
  run(4, out.data(), 0);
  EXPECT_THROW(run(3, out.data(), 0), Error);
  EXPECT_THROW(run(4, q.data(), 0), Error);
  EXPECT_THROW(run(4, out.data(), 1), Error);
  row.position = 8;
  EXPECT_THROW(run(4, out.data(), 0), Error);
}

TEST(Embedding, RowsOfEveryType) {
  for (const WeightType t : {WeightType::Int4, WeightType::Int4Aff, WeightType::Int8,
                             WeightType::F16, WeightType::BF16, WeightType::F32}) {
    const harness::RandomWeight source(t, 50, 96, 32, 1);
    for (const auto& b : harness::backends()) {
      const auto w = b->pack(source, 1);
      const std::int32_t ids[] = {49, 0, 17, 16};
      Buffer to(*b, 4 * 96);
      b->embedding({ids, w.get(), 4, to.data()});
      const std::vector<float> h = to.copy();
      for (int i = 0; i < 4; ++i)
        EXPECT_TRUE(same_bits({h.begin() + i * 96, h.begin() + (i + 1) * 96},
                              dequantise(source, ids[i], 1)))
            << weight_type_name(t) << " " << b->describe();
      const std::int32_t bad = 50;
      EXPECT_THROW(b->embedding({&bad, w.get(), 1, to.data()}), Error);
    }
  }
}

}  // namespace
}  // namespace nibble
