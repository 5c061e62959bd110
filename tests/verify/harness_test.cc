// The harness itself: it must notice what it is there to notice.
#include "verify/harness.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "verify/cases.h"
#include "verify/operation.h"
#include "verify/stress.h"

namespace nibble::verify {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr auto kInt4 = static_cast<std::size_t>(WeightType::Int4);
constexpr std::size_t kInt16 = static_cast<std::size_t>(Activations::Int16);
const std::vector<Activations> kAll{Activations::Int16, Activations::Int8, Activations::Fp32};
const cpu::Kernels& good() { return cpu::kernels(cpu::best_isa()); }

TEST(Harness, PassesAShapeAndSaysHowFarFromTheBound) {
  Harness h;
  const std::vector<Row> rows = h.check(int4_case(256, 256), kAll);
  ASSERT_EQ(rows.size(), 3u);
  for (const Row& r : rows) {
    EXPECT_EQ(r.failure, "");
    EXPECT_GT(r.worst, 0);
    EXPECT_LT(r.worst, r.bound);
    EXPECT_GE(r.runs, 30);
    EXPECT_NEAR(r.weight_error, 0.10, 0.02);  // INT4, groups of 128, normal data
  }
  EXPECT_EQ(h.check({9, 40, WeightType::BF16, 0, 1}, kAll).size(), 1u) << "plain types: fp32 only";
}

// The tested table with another INT4, int16 kernel for `rows` (index) rows of x.
template <class Fault>
std::string failure_with(std::initializer_list<std::size_t> rows, Fault) {
  cpu::Kernels bad = good();
  for (auto& row : bad.wide)
    for (cpu::WideFn& f : row) f = nullptr;  // the matrix unit would take 8 rows
  for (const std::size_t r : rows) {
    // A table holds plain functions: one for each number of rows.
    static constexpr cpu::TileFn kFaulty[] = {Fault::template call<0>, Fault::template call<1>,
                                              Fault::template call<2>, Fault::template call<3>};
    bad.tile[kInt4][kInt16][r] = kFaulty[r];
  }
  return Harness(bad).check(int4_case(40, 256), {Activations::Int16})[0].failure;
}

template <std::size_t R>
void run_good(const cpu::TileWeight& w, std::int64_t t, std::int64_t a, const cpu::XRow* x,
              float* out) {
  good().tile[kInt4][kInt16][R](w, t, a, x, out);
}

struct Right {
  template <std::size_t R>
  static void call(const cpu::TileWeight& w, std::int64_t t, std::int64_t a, const cpu::XRow* x,
                   float* out) {
    run_good<R>(w, t, a, x, out);
  }
};
struct LastPlace {  // one unit in the last place of one element
  template <std::size_t R>
  static void call(const cpu::TileWeight& w, std::int64_t t, std::int64_t a, const cpu::XRow* x,
                   float* out) {
    run_good<R>(w, t, a, x, out);
    if (t == 1) out[5] = std::nextafter(out[5], INFINITY);
  }
};
struct Unwritten {
  template <std::size_t R>
  static void call(const cpu::TileWeight& w, std::int64_t t, std::int64_t a, const cpu::XRow* x,
                   float* out) {
    run_good<R>(w, t, a, x, out);
    if (t == 2) out[7] = NAN;
  }
};
struct OffByAThousandth {
  template <std::size_t R>
  static void call(const cpu::TileWeight& w, std::int64_t t, std::int64_t a, const cpu::XRow* x,
                   float* out) {
    run_good<R>(w, t, a, x, out);
    out[0] *= 1.01f;
  }
};
struct OnlyOnce {  // the first tile of the process
  template <std::size_t R>
  static void call(const cpu::TileWeight& w, std::int64_t t, std::int64_t a, const cpu::XRow* x,
                   float* out) {
    static std::atomic<bool> done{false};
    run_good<R>(w, t, a, x, out);
    if (!done.exchange(true)) out[0] = std::nextafter(out[0], INFINITY);
  }
};
struct ReadsPastTheWeights {
  template <std::size_t R>
  static void call(const cpu::TileWeight& w, std::int64_t t, std::int64_t a, const cpu::XRow* x,
                   float* out) {
    run_good<R>(w, t, a, x, out);
    const volatile std::uint8_t* past = w.codes + 3 * w.tile_bytes;  // of 40 rows: three tiles
    out[0] += static_cast<float>(*past);
  }
};

TEST(Harness, NoticesAFaultyKernel) {
  EXPECT_EQ(failure_with({0, 1, 2, 3}, Right{}), "");
  // M = 8 is the yardstick, so a fault in the kernel of one row shows where a row is alone, ...
  EXPECT_THAT(failure_with({0}, LastPlace{}), StartsWith("row 0 alone: y[0, 21] is "));
  EXPECT_THAT(failure_with({1}, LastPlace{}), StartsWith("M = 2: y[0, 21] is "));
  EXPECT_THAT(failure_with({2}, LastPlace{}), StartsWith("M = 4: y[0, 21] is "));
  // ... one in all of them as a row's place or another instruction set, ...
  EXPECT_NE(failure_with({0, 1, 2, 3}, LastPlace{}), "");
  // ... and a large one against the reference.
  EXPECT_THAT(failure_with({0, 1, 2, 3}, Unwritten{}), StartsWith("y[0, 39] is nan, expected "));
  EXPECT_THAT(failure_with({3}, OffByAThousandth{}), HasSubstr("within 2.0e-04 of "));
  EXPECT_THAT(failure_with({3}, OnlyOnce{}), StartsWith("repetition: "));
}

TEST(HarnessDeathTest, WeightsEndAtAnUnreadablePage) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(failure_with({3}, ReadsPastTheWeights{}), "");
}

TEST(Harness, NoticesAnInputThatWasWritten) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the fault is a data race: the thread sanitizer reports it before the harness";
#endif
  cpu::Kernels bad = good();
  bad.add = [](const float* a, const float* b, std::int64_t n, float* out) {
    good().add(a, b, n, out);
    const_cast<float*>(a)[0] += 1;
  };
  EXPECT_THAT(Harness(bad).check(int4_case(16, 128), {Activations::Int16})[0].failure,
              HasSubstr("an input was written"));
}

// Prepass and fused differ in who prepares a row; a norm that depends on it must show.
TEST(Harness, NoticesAPlanThatChangesBits) {
  cpu::Kernels bad = good();
  bad.add_rmsnorm = [](const float* r, const float* d, const float* w, float offset, float eps,
                       std::int64_t k, float* u) {
    good().add_rmsnorm(r, d, w, offset, eps, k, u);
    static thread_local int calls = 0;  // what a thread prepared before must not matter
    if (++calls > kRows) u[1] = std::nextafter(u[1], INFINITY);
  };
  EXPECT_NE(Harness(bad).check(int4_case(16, 128), {Activations::Fp32})[0].failure, "");
}

TEST(Cases, CoverWhatTheyClaim) {
  const std::vector<Case> quick = quick_cases(), full = full_cases();
  const auto has = [](const std::vector<Case>& v, std::int64_t n, std::int64_t k) {
    return std::any_of(v.begin(), v.end(), [&](const Case& c) { return c.n == n && c.k == k; });
  };
  for (const auto& [n, k] : std::vector<std::pair<int, int>>{{16, 128},
                                                             {32, 256},
                                                             {128, 2048},
                                                             {256, 2048},
                                                             {512, 2048},
                                                             {513, 2048},
                                                             {512, 5120},
                                                             {8704, 5120},
                                                             {5120, 4352},
                                                             {1024, 1280},
                                                             {1024, 256},
                                                             {24, 5120},
                                                             {1, 128},
                                                             {2048, 64},
                                                             {5120, 17408},
                                                             {34816, 5120},
                                                             {248320, 5120},
                                                             {31040, 2048}})
    EXPECT_TRUE(has(full, n, k)) << n << "x" << k;
  for (int t = 0; t < 6; ++t)
    for (const auto* v : {&quick, &full})
      EXPECT_TRUE(std::any_of(v->begin(), v->end(),
                              [&](const Case& c) { return static_cast<int>(c.type) == t; }));
  for (const int g : {32, 64, 128}) {
    std::set<std::int64_t> ks;
    for (const Case& c : full)
      if (c.group == g && c.type == WeightType::Int4) ks.insert(c.k);
    for (std::int64_t k = g; k <= 2048; k += g) EXPECT_TRUE(ks.contains(k)) << g << " " << k;
  }
  std::set<std::int64_t> tails;
  for (const Case& c : quick)
    if (c.type == WeightType::Int4) tails.insert(c.n % cpu::kTile);
  EXPECT_EQ(tails.size(), static_cast<std::size_t>(cpu::kTile));
  EXPECT_THROW(int4_case(4, 33), UsageError);
  EXPECT_THROW(int4_case(0, 128), UsageError);
  EXPECT_EQ(int4_case(2048, 64).group, 64);
  EXPECT_EQ(int4_case(5, 96).group, 32);
}

TEST(Weights, RowsDependOnTheirNumberAlone) {
  for (const WeightType t : {WeightType::Int4, WeightType::Int4Aff, WeightType::Int8,
                             WeightType::F16, WeightType::BF16, WeightType::F32}) {
    const NormalWeight all(t, 100, 128, 64, 5), part(t, 10, 128, 64, 5, 70);
    EXPECT_EQ(dequantise(all, 70, 10), dequantise(part, 0, 10)) << weight_type_name(t);
    EXPECT_NE(dequantise(all, 0, 1), dequantise(all, 1, 1));
    std::vector<float> before(100 * 128);
    all.unquantised(0, 100, before.data());
    double squares = 0, errors = 0;
    const std::vector<float> after = dequantise(all, 0, 100);
    for (std::size_t i = 0; i < before.size(); ++i) {
      squares += std::pow(static_cast<double>(before[i]), 2);
      errors += std::pow(static_cast<double>(after[i]) - before[i], 2);
    }
    EXPECT_NEAR(std::sqrt(squares / 12800), 0.02, 0.0005);
    const double relative = std::sqrt(errors / squares);
    EXPECT_LT(relative, t <= WeightType::Int4Aff ? 0.105 : 0.01) << weight_type_name(t);
    if (t <= WeightType::Int4Aff) {
      EXPECT_GT(relative, 0.06);
    }
  }
}

TEST(Stress, SameBitsUnderRandomDelays) {
  for (const int threads : {1, 2, 5}) {
    const StressResult r =
        stress(int4_case(256, 512), Activations::Int16, threads, 300, [](double) {});
    EXPECT_EQ(r.calls, 300);
    EXPECT_EQ(r.differing, 0) << r.first;
  }
}

// The gate: all threads but the first are held until it has prepared its rows.
TEST(Disturbance, OneThreadFirstTheOthersLate) {
  class Recorder final : public Disturbance {
   public:
    void begin() override { gate.begin(); }
    void before(Stage s) override {
      gate.before(s);
      const std::lock_guard lock(mutex);
      const auto me = std::this_thread::get_id();
      if (s == Stage::Norm) arrived.insert(me);
      if (s == Stage::Tile && alone_at_first_tile < 0)
        alone_at_first_tile = static_cast<int>(arrived.size());
    }
    FirstThenOthers gate;
    std::mutex mutex;
    std::set<std::thread::id> arrived;
    int alone_at_first_tile = -1;
  } order;
  cpu::CpuBackend b(4, perturbed_kernels(cpu::best_isa()), true);
  const NormalWeight source(WeightType::Int4, 640, 256, 128, 1);
  const auto w = b.pack(source, 1);
  const Inputs in(256, false, 3);
  const verify::Run run{"run", &b, w.get(), &in, Activations::Int16, {0}};
  const Outputs want = execute(run);
  set_disturbance(&order);
  order.begin();
  const std::string difference = compare(run, want, 640);
  set_disturbance(nullptr);
  EXPECT_EQ(difference, "");
  EXPECT_EQ(order.alone_at_first_tile, 1);
}

}  // namespace
}  // namespace nibble::verify
