// The fused operation on the device, verified, then timed: a chain of dependent operations (the
// residual of one is the residual_out of the one before) in one graph, weights rotating beyond the
// second cache. Prints microseconds an operation, GB/s, and the share of the read limit measured in
// the same run. Run: fused_cuda [NxK[,M[,plain]]]... plain: a row-parallel linear (8 pieces)
// instead, as o and down are.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <string>

#include "backend/cpu/cpu_backend.h"
#include "verify/buffer.h"
#include "verify/operation.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Codes and scales from a hash: quick to make at any size.
class HashedWeight final : public WeightSource {
 public:
  HashedWeight(std::int64_t n, std::int64_t k, std::uint64_t seed)
      : WeightSource("hashed", {WeightType::Int4, n, k, 128, true}), seed_(seed) {}
  void read(std::int64_t row, std::int64_t count, WeightRows& out) const override {
    const std::int64_t k = format_.k, groups = format_.groups();
    out.codes.resize(static_cast<std::size_t>(count * k));
    out.scales.resize(static_cast<std::size_t>(count * groups));
    std::uint64_t x = 0;
    for (std::int64_t i = 0; i < count * k; ++i) {
      if (i % k == 0)  // a row's values do not depend on how many are read at once
        x = seed_ * 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(row + i / k) + 1;
      x ^= x << 13, x ^= x >> 7, x ^= x << 17;
      out.codes[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(x & 15);
    }
    for (std::int64_t i = 0; i < count * groups; ++i)
      out.scales[static_cast<std::size_t>(i)] =
          static_cast<float>((row * groups + i) % 29 - 14) / 16384.0f;
  }

 private:
  std::uint64_t seed_;
};

struct Shape {
  std::int64_t n, k;
  int m;
  bool plain = false;
};

// The bits of a plain linear's first rows are the CPU's.
bool plain_equal(Backend& device, Backend& cpu, const Weight& on_device, const Weight& on_cpu,
                 const Shape& s, std::int64_t rows, const std::vector<float>& x) {
  std::vector<float> y[2];
  for (const int i : {0, 1}) {
    Backend& b = i == 0 ? cpu : device;
    const LinearOutput none{i == 0 ? &on_cpu : &on_device, nullptr, nullptr, rows};
    verify::Buffer in(b, x), out(b, static_cast<std::size_t>(rows * s.m));
    LinearOutput o = none;
    o.y = out.data();
    b.linear({in.data(), s.m, s.k, Activations::Int16, {&o, 1}});
    y[i] = out.copy();
  }
  return verify::same_bits(y[0], y[1]);
}

void run(Backend& device, Backend& cpu, const Shape& s, Plan plan, double limit) {
  constexpr std::size_t kBeyondCache = std::size_t{256} << 20;
  const HashedWeight source(s.n, s.k, 1);
  std::vector<std::unique_ptr<Weight>> weights;
  const int pieces = s.plain ? 8 : 1;
  weights.push_back(device.pack(source, pieces));
  const std::uint64_t bytes = weights[0]->bytes();
  // Verified first: the CPU's bits, on the first 64 rows of W.
  const verify::Inputs in(s.k, false, 7);
  const std::int64_t rows = std::min<std::int64_t>(64, s.n);
  const HashedWeight part(rows, s.k, 1);
  const auto w_cpu = cpu.pack(part, pieces), w_device = device.pack(part, pieces);
  std::vector<int> all;
  for (int i = 0; i < s.m; ++i) all.push_back(i);
  const verify::Outputs want =
      verify::execute({"cpu", &cpu, w_cpu.get(), &in, Activations::Int16, all, Plan::Auto});
  verify::Run check{"device", &device, w_device.get(), &in, Activations::Int16, all, plan};
  const verify::Outputs got = verify::execute(check);
  const std::vector<float> x(in.residual.begin(), in.residual.begin() + s.k * s.m);
  const bool equal = s.plain ? plain_equal(device, cpu, *w_device, *w_cpu, s, rows, x)
                             : got.y == want.y && got.h == want.h && got.u == want.u;

  while (weights.size() * bytes < kBeyondCache && weights.size() < 1000)
    weights.push_back(device.pack(HashedWeight(s.n, s.k, weights.size() + 1), pieces));
  const std::size_t ops = s.n * s.k < (1 << 22) ? 1000 : 200;
  const auto floats = [&](std::int64_t n) {
    return device.alloc(static_cast<std::size_t>(n * s.m) * sizeof(float));
  };
  const auto f = [](const Backend::Buffer& b) { return reinterpret_cast<float*>(b.get()); };
  const Backend::Buffer h[2] = {floats(s.k), floats(s.k)}, delta = floats(s.k), y = floats(s.n),
                        norm = device.alloc(static_cast<std::size_t>(s.k) * sizeof(float));
  const auto values = static_cast<std::size_t>(s.k * s.m);
  device.upload(h[0].get(), in.residual.data(), values * sizeof(float));
  std::vector<float> small(values, 1e-3f);
  device.upload(delta.get(), small.data(), values * sizeof(float));
  device.upload(norm.get(), in.weight.data(), static_cast<std::size_t>(s.k) * sizeof(float));
  float last = 0;
  const auto chain = [&](std::uint64_t key) {
    if (!device.begin_step({}, {&key, 1})) {
      for (std::size_t i = 0; i < ops; ++i) {
        const LinearOutput out{weights[i % weights.size()].get(), nullptr, f(y), s.n};
        if (s.plain) {
          device.linear({f(delta), s.m, s.k, Activations::Int16, {&out, 1}});
          continue;
        }
        AddRmsNormLinearArgs a{.residual = f(h[i % 2]),
                               .delta = f(delta),
                               .weight = f(norm),
                               .residual_out = f(h[1 - i % 2]),
                               .m = s.m,
                               .k = s.k,
                               .outputs = {&out, 1}};
        a.plan = plan;
        device.add_rmsnorm_linear(a);
      }
      device.end_step(false);
    }
    device.download(&last, y.get(), sizeof last);
  };
  static std::uint64_t key = 0;
  ++key;
  for (int i = 0; i < 5; ++i) chain(key);
  std::vector<double> us;
  for (int i = 0; i < 15; ++i) {
    const auto begin = Clock::now();
    chain(key);
    us.push_back(std::chrono::duration<double>(Clock::now() - begin).count() * 1e6 /
                 static_cast<double>(ops));
  }
  std::sort(us.begin(), us.end());
  const double rate = static_cast<double>(bytes) / us[7] * 1e6;
  std::printf(
      "%6ld x %5ld  M %d  %-7s  %7.2f us (%.2f to %.2f)  %5.0f GB/s  %3.0f %% of read  "
      "CPU's bits: %s\n",
      s.n, s.k, s.m,
      s.plain               ? "plain"
      : plan == Plan::Fused ? "fused"
                            : "prepass",
      us[7], us[0], us[14], rate / 1e9, 100 * rate / limit, equal ? "yes" : "NO");
  std::fflush(stdout);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using namespace nibble;
  try {
    const auto device = make_backend("cuda", 0), cpu = make_backend("cpu", 0);
    const double limit = device->read_bandwidth();
    std::printf("%s\nread limit %.0f GB/s\n", device->describe().c_str(), limit / 1e9);
    std::vector<Shape> shapes;
    for (int i = 1; i < argc; ++i) {
      Shape s{0, 0, 1};
      char kind[6] = "";
      if (std::sscanf(argv[i], "%ldx%ld,%d,%5s", &s.n, &s.k, &s.m, kind) < 2) return 2;
      s.plain = kind[0] != 0;
      shapes.push_back(s);
    }
    if (shapes.empty())
      shapes = {{34816, 5120, 1}, {8704, 5120, 1},       {256, 2048, 1},         {16384, 5120, 1},
                {12288, 2048, 1}, {5120, 6144, 1, true}, {5120, 17408, 1, true}, {34816, 5120, 8},
                {8704, 5120, 8},  {5120, 17408, 8, true}};
    for (const Shape& s : shapes)
      for (const Plan p : {Plan::Fused, Plan::Prepass})
        if (!s.plain || p == Plan::Fused) run(*device, *cpu, s, p, limit);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "fused_cuda: %s\n", e.what());
    return 1;
  }
  return 0;
}
