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
  double scale = 0.125;
  double spread = 0;  // of the values' sizes by position: 10^-spread to 10^spread
  std::int64_t pitch() const { return gated ? 2 * head_dim : head_dim; }
};

struct Result {
  std::vector<float> out, q, projected;
  std::vector<float> keys, values;  // [kv_heads, length, head_dim] as the cache has them
};

// Feeds `length` positions in steps of `chunk` rows and returns every row's attention output.
Result feed(Backend& b, const Case& c, std::int64_t chunk, std::int64_t slot,
            Activations activations = Activations::Int16) {
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
  std::vector<float> v = random_floats(static_cast<std::size_t>(c.length * kw), 3);
  for (std::int64_t i = 0; i < c.length * kw; ++i)
    v[static_cast<std::size_t>(i)] *=
        static_cast<float>(std::pow(10, c.spread * std::sin(static_cast<double>(7 * (i / kw)))));
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
                 .scale = static_cast<float>(c.scale),
                 .rows = rows.data(),
                 .cache = cache.get(),
                 .layer = 1,
                 .out = out.data(),
                 .activations = activations});
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

// The worst error of about 50 positions, in units of sum p |v| (less 1e-7).
double worst_error(const Case& c, const Result& r) {
  double worst = 0;
  const std::int64_t qw = c.heads * c.head_dim, ratio = c.heads / c.kv_heads;
  for (std::int64_t p = 0; p < c.length; p += 1 + c.length / 50)
    for (std::int64_t h = 0; h < c.heads; ++h) {
      std::vector<double> want(static_cast<std::size_t>(c.head_dim)), mag(want.size());
      const std::int64_t kv = h / ratio * c.length * c.head_dim;
      attention_reference(r.q.data() + p * qw + h * c.head_dim, r.keys.data() + kv,
                          r.values.data() + kv, p + 1, c.head_dim, c.scale, want.data(),
                          mag.data());
      const float* gate = r.projected.data() + (p * c.heads + h) * c.pitch() + c.head_dim;
      if (c.gated)
        for (std::int64_t d = 0; d < c.head_dim; ++d)
          want[static_cast<std::size_t>(d)] /= 1 + std::exp(-static_cast<double>(gate[d]));
      for (std::int64_t d = 0; d < c.head_dim; ++d) {
        const double error =
            std::fabs(r.out[static_cast<std::size_t>(p * qw + h * c.head_dim + d)] -
                      want[static_cast<std::size_t>(d)]);
        const double relative = (error - 1e-7) / mag[static_cast<std::size_t>(d)];
        if (!(relative <= worst)) worst = relative;  // NaN stays
      }
    }
  return worst;
}

TEST_P(AttentionTest, MatchesReferenceAndBitsAgree) {
  const Case c = GetParam();
  const auto& all = harness::backends();
  const Result r = feed(*all[0], c, 64, 0);
  EXPECT_LE(worst_error(c, r), 1e-5);
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
                    Case{5, 1, 64, 130, KvType::I16, false},
                    Case{2, 1, 16, 1100, KvType::F32, false},
                    Case{6, 2, 64, 70, KvType::F32, true, true},
                    Case{3, 1, 256, 530, KvType::I16, true, true}));

// Devices that take Activations::Half: the emulator's have each other's bits.
std::vector<std::unique_ptr<Backend>> half_backends() {
  std::vector<std::unique_ptr<Backend>> v;
#ifndef __SANITIZE_THREAD__  // cuda/emulated.cc says why
  for (const int schedule : {0, 1, 2}) v.push_back(emulated_backend(0, schedule));
#endif
  try {
    v.push_back(cuda::make(1));
  } catch (const Error&) {  // no device
  }
  return v;
}

class HalfAttentionTest : public testing::TestWithParam<Case> {};

TEST_P(HalfAttentionTest, MatchesReferenceAndBitsAgree) {
  const Case c = GetParam();
  Case shorter = c;
  shorter.length = c.length / 64 * 64 + 1;
  std::vector<float> first;  // of an emulated backend
  for (const auto& b : half_backends()) {
    const auto run = [&](const Case& of, std::int64_t chunk, std::int64_t slot) {
      return feed(*b, of, chunk, slot, Activations::Half);
    };
    const Result r = run(c, 1024, 0);
    EXPECT_LE(worst_error(c, r), 1e-3);
    if (first.empty()) first = r.out;
    if (b->is_host()) {
      EXPECT_TRUE(same_bits(r.out, first)) << b->describe();
    }
    // Any split at multiples of 64, and what a row's sequence goes on with.
    EXPECT_TRUE(same_bits(run(c, 64, 2).out, r.out)) << b->describe();
    EXPECT_TRUE(same_bits(run(c, 128, 1).out, r.out)) << b->describe();
    for (const std::int64_t chunk : {64, 1024}) {
      const std::vector<float> rows = run(shorter, chunk, 1).out;
      EXPECT_TRUE(harness::same_bits(rows.data(), r.out.data(), rows.size()));
    }
  }
}

// Rounded to fp16, q and k move a score by about 3e-4 of what scores differ by, and with it their
// weights. These scales leave scores that differ by 1 to 2.
INSTANTIATE_TEST_SUITE_P(All, HalfAttentionTest,
                         testing::Values(Case{6, 1, 256, 130, KvType::I16, true, true, 0.02},
                                         Case{8, 1, 256, 67, KvType::I16, true, false, 0.04},
                                         Case{4, 2, 128, 130, KvType::I16, false, false, 0.09},
                                         Case{3, 1, 64, 150, KvType::I16, false, true},
                                         Case{1, 1, 8, 321, KvType::I16, false},
                                         Case{5, 1, 72, 65, KvType::I16, true, false, 0.07},
                                         Case{14, 2, 16, 33, KvType::I16, false},
                                         Case{2, 1, 136, 129, KvType::I16, false, true, 0.08},
                                         Case{4, 1, 64, 200, KvType::I16, false, false, 0.125, 4},
                                         Case{2, 1, 64, 200, KvType::I16, false, false, 0.125, 9}));

// Rows of many sequences in one step, each at a place of its own, have the bits they have alone.
TEST(HalfAttention, CompanyDoesNotShow) {
  constexpr std::int64_t kHeads = 6, kKvHeads = 2, kDim = 24, kSlots = 70, kContext = 192;
  struct Part {
    int slot, first, rows;
  };
  for (const auto& b : half_backends()) {
    const auto cache = b->make_kv_cache({.layers = 1,
                                         .slots = kSlots,
                                         .kv_heads = kKvHeads,
                                         .head_dim = kDim,
                                         .context = kContext,
                                         .type = KvType::I16});
    const auto step = [&](const std::vector<Part>& parts) {
      std::vector<RowPlace> rows;
      std::vector<float> q, k, v;
      for (const Part& p : parts)
        for (int i = p.first; i < p.first + p.rows; ++i) {
          rows.push_back({p.slot, i});
          const auto add = [&](std::vector<float>& to, std::int64_t n, int kind) {
            const auto x = random_floats(static_cast<std::size_t>(n * kDim),
                                         static_cast<unsigned>((kind * 100 + p.slot) * 1000 + i));
            to.insert(to.end(), x.begin(), x.end());
          };
          add(q, kHeads, 0), add(k, kKvHeads, 1), add(v, kKvHeads, 2);
        }
      const auto m = static_cast<std::int64_t>(rows.size());
      const std::vector<float> cs(q.size(), 0.5f);
      Buffer qi(*b, q), ki(*b, k), vi(*b, v), rotated(*b, q.size()), out(*b, q.size());
      b->rope_cache({.q = qi.data(),
                     .k = ki.data(),
                     .v = vi.data(),
                     .cos_sin = cs.data(),
                     .m = m,
                     .heads = kHeads,
                     .rotary = kDim,
                     .rows = rows.data(),
                     .cache = cache.get(),
                     .q_out = rotated.data()});
      b->attention({.q = rotated.data(),
                    .m = m,
                    .heads = kHeads,
                    .scale = 0.2f,
                    .rows = rows.data(),
                    .cache = cache.get(),
                    .out = out.data(),
                    .activations = Activations::Half});
      return out.copy();
    };
    // Others' pasts, then all at once: one that goes on, ends at and begins beside a block's edge.
    std::vector<Part> together = {{3, 64, 100}, {0, 0, 70}, {69, 128, 1}};
    for (int slot = 4; slot < 69; ++slot) together.push_back({slot, slot % 5 * 30, 1});
    for (const Part& p : together)
      if (p.first > 0) step({{p.slot, 0, p.first}});
    const std::vector<float> all = step(together);
    std::vector<float> apart;
    for (const Part& p : together) {
      const std::vector<float> one = step({p});
      apart.insert(apart.end(), one.begin(), one.end());
    }
    EXPECT_TRUE(same_bits(all, apart)) << b->describe();
  }
}

// What no kernel in fp16 takes has the exact one's bits.
TEST(HalfAttention, ElseIsExact) {
#ifndef __SANITIZE_THREAD__
  const auto small = emulated_backend(1, 0), large = emulated_backend(0, 0);
  const Case wide{2, 1, 256, 9, KvType::I16, false}, wider{1, 1, 264, 9, KvType::I16, false},
      real{2, 1, 64, 9, KvType::F32, false};
  for (const auto& [b, c] :
       {std::pair{small.get(), wide}, {large.get(), wider}, {large.get(), real}})
    EXPECT_TRUE(same_bits(feed(*b, c, 64, 0, Activations::Half).out, feed(*b, c, 64, 0).out));
  const Case fits{2, 1, 128, 9, KvType::I16, false};
  EXPECT_TRUE(same_bits(feed(*small, fits, 64, 0, Activations::Half).out,
                        feed(*large, fits, 64, 0, Activations::Half).out));
  EXPECT_FALSE(
      same_bits(feed(*small, fits, 64, 0, Activations::Half).out, feed(*small, fits, 64, 0).out));
#endif
}

// A sequence that met NaN leaves nothing behind for the next one in its slot.
void forgets_nan(const std::vector<std::unique_ptr<Backend>>& backends, Activations activations) {
  for (const KvType type : {KvType::I16, KvType::F32})
    for (const auto& b : backends) {
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
                      .out = out.data(),
                      .activations = activations});
        return out.copy();
      };
      const std::vector<float> good = random_floats(16, 1), want = step(good, 0);
      for (std::int32_t p = 0; p < 64; ++p)
        EXPECT_TRUE(std::isnan(step(std::vector<float>(16, NAN), p)[0]));
      EXPECT_TRUE(same_bits(step(good, 0), want)) << b->describe();
    }
}
TEST(Attention, ForgetsAnEarlierSequencesNaN) {
  forgets_nan(harness::backends(), Activations::Int16);
  forgets_nan(half_backends(), Activations::Half);
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

}  // namespace
}  // namespace nibble
