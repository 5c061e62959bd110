// nibble bench fused: residual-add + RMSNorm + INT4 GEMV beside the read bandwidth, verified first.
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "commands.h"
#include "common.h"
#include "console.h"
#include "engine/bandwidth.h"
#include "verify/operation.h"
#include "version.h"

namespace nibble::cli {
namespace {

using verify::Case;
using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct Options {
  std::vector<std::string> shapes{"8704x5120", "34816x5120"}, activations{"int16", "int8"},
      devices{"cpu"};
  std::vector<int> threads{0};
  int rows = 1, repeat = 31;
  bool cached = false, json = false;
};

struct Spread {
  double median, low, high;  // low and high: quartiles
};
Spread spread(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return {v[v.size() / 2], v[v.size() / 4], v[v.size() - 1 - v.size() / 4]};
}

struct Result {
  Case shape;
  std::string activations, device;
  int threads = 0;
  std::uint64_t bytes = 0;
  Spread seconds{}, read{};  // an operation; bytes a second in the same rounds
};

// The operation over copies of one matrix that together do not fit the caches.
class Subject {
 public:
  Subject(Backend& backend, const Case& c, int rows, bool cached, Progress& progress)
      : backend_(backend), shape_(c), rows_(rows) {
    const verify::NormalWeight source(c.type, c.n, c.k, c.group, 1);
    const std::uint64_t wanted = std::max<std::uint64_t>(128u << 20, 4 * last_level_cache());
    while (weights_.empty() || (!cached && weights_.size() * bytes() < wanted)) {
      weights_.push_back(backend.pack(source, c.pieces));
      progress.show(static_cast<double>(weights_.size() * bytes()) / static_cast<double>(wanted),
                    "weights");
    }
    // Of a cached one, which waits for no memory, as many as take about as long on any machine.
    calls_ = cached ? std::clamp<std::size_t>((16u << 20) / bytes(), 4, 2000) : weights_.size();
    const std::size_t k = static_cast<std::size_t>(c.k * rows), n = static_cast<std::size_t>(c.n);
    const verify::Inputs in(c.k, false, 1);
    residual_ = {in.residual.begin(), in.residual.begin() + static_cast<std::ptrdiff_t>(k)};
    delta_ = {in.delta.begin(), in.delta.begin() + static_cast<std::ptrdiff_t>(k)};
    norm_ = in.weight, residual_out_.resize(k), y_.resize(n * static_cast<std::size_t>(rows));
  }
  std::uint64_t bytes() const { return weights_[0]->bytes(); }

  // Seconds an operation, over all copies once, or some calls of a cached one.
  double pass(Activations a) {
    const auto begin = Clock::now();
    for (std::size_t i = 0; i < calls_; ++i) {
      const auto& w = weights_[i % weights_.size()];
      const LinearOutput out{w.get(), nullptr, y_.data(), shape_.n};
      backend_.add_rmsnorm_linear({.residual = residual_.data(),
                                   .delta = delta_.data(),
                                   .weight = norm_.data(),
                                   .eps = verify::kEps,
                                   .residual_out = residual_out_.data(),
                                   .m = rows_,
                                   .k = shape_.k,
                                   .activations = a,
                                   .outputs = {&out, 1}});
    }
    return std::chrono::duration<double>(Clock::now() - begin).count() /
           static_cast<double>(calls_);
  }

 private:
  Backend& backend_;
  Case shape_;
  int rows_;
  std::vector<std::unique_ptr<Weight>> weights_;
  std::size_t calls_ = 0;  // a pass
  std::vector<float> residual_, delta_, norm_, residual_out_, y_;
};

void verify_first(const std::vector<Case>& cases, const std::vector<Activations>& modes) {
  Progress progress("verify");
  verify::Harness harness;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    progress.show(static_cast<double>(i) / static_cast<double>(cases.size()));
    for (const verify::Row& r : harness.check(cases[i], modes))
      require(r.failure.empty(), "{}x{} {} does not verify, so it is not timed: {}", r.shape.n,
              r.shape.k, activations_name(r.activations), r.failure);
  }
}

// Read bandwidth and modes take turns, so that a machine that slows down slows all.
void time_shape(const Options& o, const std::string& device, int threads, const Case& c,
                const std::vector<Activations>& modes, std::vector<Result>& results) {
  Progress progress(fmt::format("{}x{} {}", c.n, c.k, device));
  const auto backend = make_backend(device, threads);
  if (!backend->is_host()) fail_usage("this times the CPU; bench/gpu.sh times a GPU");
  ReadProbe probe(threads);
  Subject subject(*backend, c, o.rows, o.cached, progress);
  std::vector<double> read;
  std::vector<std::vector<double>> seconds(modes.size());
  for (int round = -1; round < o.repeat; ++round) {  // the first warms up
    const double rate = probe.pass();
    if (round >= 0) read.push_back(rate);
    for (std::size_t i = 0; i < modes.size(); ++i) {
      const double s = subject.pass(modes[i]);
      if (round >= 0) seconds[i].push_back(s);
    }
    progress.show((round + 2.0) / (o.repeat + 1.0));
  }
  for (std::size_t i = 0; i < modes.size(); ++i)
    results.push_back({c, std::string(activations_name(modes[i])), backend->describe(),
                       backend->threads(), subject.bytes(), spread(seconds[i]), spread(read)});
}

void bench_fused(const Options& o) {
  std::vector<Case> cases;
  for (const std::string& s : o.shapes) cases.push_back(parse_shape(s));
  std::vector<Activations> modes;
  for (const Activations a : {Activations::Int16, Activations::Int8, Activations::Fp32})
    if (std::find(o.activations.begin(), o.activations.end(), activations_name(a)) !=
        o.activations.end())
      modes.push_back(a);
  verify_first(cases, modes);
  std::vector<Result> results;
  for (const Case& c : cases)
    for (const int threads : o.threads)
      for (const std::string& device : o.devices) time_shape(o, device, threads, c, modes, results);
  if (!o.json) {
    out("{}\nmachine {}, {} cores\nverified; {} rows of x, {} rounds\n\n", version_text(),
        cpu_model(), available_cores(), o.rows, o.repeat);
    out("{:>12}  {:<6}  {:<28}  {:>9}  {:>19}  {:>6}  {:>6}  {:>9}\n", "N x K", "acts", "device",
        "us", "quartiles", "GB/s", "read", "% of read");
  }
  auto list = Json::array();
  for (const Result& r : results) {
    const double rate = static_cast<double>(r.bytes) / r.seconds.median;
    if (!o.json) {
      out("{:>12}  {:<6}  {:<28}  {:>9.1f}  {:>19}  {:>6.2f}  {:>6.2f}  {:>9.1f}\n",
          fmt::format("{}x{}", r.shape.n, r.shape.k), r.activations, r.device,
          r.seconds.median * 1e6,
          fmt::format("{:.1f} .. {:.1f}", r.seconds.low * 1e6, r.seconds.high * 1e6), rate / 1e9,
          r.read.median / 1e9, 100 * rate / r.read.median);
      continue;
    }
    list.push_back({{"n", r.shape.n},
                    {"k", r.shape.k},
                    {"group", r.shape.group},
                    {"rows", o.rows},
                    {"activations", r.activations},
                    {"device", r.device},
                    {"threads", r.threads},
                    {"microseconds", r.seconds.median * 1e6},
                    {"quartile_low", r.seconds.low * 1e6},
                    {"quartile_high", r.seconds.high * 1e6},
                    {"bytes", r.bytes},
                    {"gb_per_second", rate / 1e9},
                    {"read_gb_per_second", r.read.median / 1e9},
                    {"bandwidth_fraction", rate / r.read.median},
                    {"cached", o.cached},
                    {"repeat", o.repeat}});
  }
  if (o.json) out_json(list);
}

}  // namespace

void add_bench_fused(CLI::App& bench) {
  auto* cmd = bench.add_subcommand("fused", "Residual-add + RMSNorm + INT4 GEMV, verified first");
  const auto o = std::make_shared<Options>();
  const auto list = [&](const char* name, auto& value, const char* help) {
    return cmd->add_option(name, value, help)
        ->delimiter(',')
        ->allow_extra_args(false)
        ->capture_default_str();
  };
  list("--shape", o->shapes, "NxK,...");
  list("--activations", o->activations, "int16, int8, fp32")
      ->check(CLI::IsMember({"int16", "int8", "fp32"}));
  list("--device", o->devices, "cpu, or cpu:avx2 and the like: with that instruction set")
      ->check(CLI::IsMember(device_names()));
  list("--threads", o->threads, "Numbers of threads; 0: every core this process may use")
      ->check(CLI::Range(0, 1024));
  cmd->add_option("--rows", o->rows, "Rows of x, M")
      ->check(CLI::Range(1, verify::kRows))
      ->capture_default_str();
  cmd->add_option("--repeat", o->repeat, "Timed rounds, after one to warm up")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  cmd->add_flag("--cached", o->cached,
                "One copy of the weights: of a matrix that fits a cache, what the cores can do");
  cmd->add_flag("--json", o->json, "Print a JSON list");
  cmd->footer(
      "Every shape passes the sweep's checks (nibble verify) first. Then rounds: one pass over a "
      "buffer,\nfor the read bandwidth, and one over copies of the matrix that do not fit the "
      "caches, in each mode.\nMedians and quartiles over the rounds; GB/s counts codes and "
      "scales.\n\n"
      "  nibble bench fused\n"
      "  nibble bench fused --shape 8704x5120 --threads 1,2 --device cpu:avx2,cpu");
  cmd->callback([o] { bench_fused(*o); });
}

}  // namespace nibble::cli
