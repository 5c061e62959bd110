// nibble verify: the sweep over shapes, the story of the published defect, and the stress.
#include <fstream>
#include <optional>

#include "backend/backend.h"
#include "backend/cuda/adversary.h"
#include "backend/cuda/make.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "commands.h"
#include "common.h"
#include "console.h"
#include "verify/cases.h"
#include "verify/published.h"
#include "verify/stress.h"
#include "version.h"

namespace nibble::cli {
namespace {

using verify::Case;
using verify::Row;
using Json = nlohmann::ordered_json;

struct Options {
  bool quick = false, explain = false, json = false;
  std::string device = "cpu";
  std::vector<std::string> activations, shapes;
  std::int64_t stress = 0;
  int threads = 0;
};

std::vector<Activations> modes(const std::vector<std::string>& names) {
  std::vector<Activations> v;
  for (const Activations a : {Activations::Int16, Activations::Int8, Activations::Fp32})
    if (names.empty() || std::find(names.begin(), names.end(), activations_name(a)) != names.end())
      v.push_back(a);
  return v;
}

std::uint64_t available_memory() {
  std::ifstream info("/proc/meminfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("MemAvailable:", 0) == 0) return std::stoull(line.substr(13)) * 1024;
  return 0;
}

std::string shape_name(const Case& c) { return fmt::format("{}x{}", c.n, c.k); }
std::string type_name(const Case& c) {
  std::string s(weight_type_name(c.type));
  if (c.group != 0) s += fmt::format(" g{}", c.group);
  if (c.pieces != 1) s += fmt::format(" p{}", c.pieces);
  return s;
}

struct Sweep {
  std::vector<Row> rows;
  std::vector<std::string> skipped;
  double seconds = 0;
};

void print_head() {
  out("{:>14}  {:<20} {:<5}  {:>9}  {:>8}  {:>8}  {}\n", "N x K", "weights", "acts", "w. error",
      "worst", "bound", "bits");
}
void print_row(const Row& r) {
  out("{:>14}  {:<20} {:<5}  {:>9.4f}  {:>8.1e}  {:>8.1e}  {}{}\n", shape_name(r.shape),
      type_name(r.shape), activations_name(r.activations), r.weight_error, r.worst, r.bound,
      r.failure.empty() ? fmt::format("equal, {} runs", r.runs) : "FAILED: " + r.failure,
      r.note.empty() ? "" : "; " + r.note);
}

Sweep run_sweep(const Options& o) {
  std::vector<Case> cases;
  for (const std::string& s : o.shapes) cases.push_back(parse_shape(s));
  if (cases.empty()) cases = o.quick ? verify::quick_cases() : verify::full_cases();
  const std::vector<Activations> acts = modes(o.activations);
  verify::Harness harness =
      o.device == cuda::kDevice ? verify::Harness(cuda::make_schedules()) : verify::Harness();
  if (!o.json) {
    out("{}\nmachine {}, {} cores\nschedules {}\n\n", version_text(), cpu_model(),
        available_cores(), harness.describe());
    if (!o.quick) print_head();
  }
  // Time goes with elements, plus a share for each case's many small operations.
  const auto cost = [](const Case& c) { return static_cast<double>(c.n * c.k) + 5e5; };
  double total = 0, done = 0;
  for (const Case& c : cases) total += cost(c);
  const auto begin = std::chrono::steady_clock::now();
  Sweep sweep;
  Progress progress("verify");
  for (const Case& c : cases) {
    progress.show(done / total, shape_name(c) + " " + type_name(c));
    done += cost(c);
    if (const std::uint64_t need = verify::Harness::memory(c), have = available_memory();
        have != 0 && need > have / 10 * 9) {
      sweep.skipped.push_back(fmt::format("{} {}: needs {}, {} available", shape_name(c),
                                          type_name(c), human_bytes(need), human_bytes(have)));
      continue;
    }
    for (Row& r : harness.check(c, acts)) {
      if (!o.json && (!o.quick || !r.failure.empty())) print_row(r);
      sweep.rows.push_back(std::move(r));
    }
    if (!o.json) flush_output();
  }
  sweep.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return sweep;
}

Json row_json(const Row& r) {
  return {{"n", r.shape.n},
          {"k", r.shape.k},
          {"type", weight_type_name(r.shape.type)},
          {"group", r.shape.group},
          {"pieces", r.shape.pieces},
          {"activations", activations_name(r.activations)},
          {"weight_error", r.weight_error},
          {"worst", r.worst},
          {"bound", r.bound},
          {"bits", r.failure.empty() ? "equal" : r.failure},
          {"runs", r.runs},
          {"note", r.note},
          {"failed", !r.failure.empty()}};
}

void sweep(const Options& o) {
  const Sweep s = run_sweep(o);
  std::int64_t failed = 0, runs = 0;
  for (const Row& r : s.rows) failed += !r.failure.empty(), runs += r.runs;
  if (o.json) {
    auto rows = Json::array();
    for (const Row& r : s.rows) rows.push_back(row_json(r));
    out_json({{"rows", rows},
              {"failed", failed},
              {"skipped", s.skipped},
              {"commit", commit()},
              {"machine", cpu_model()},
              {"device", o.device},
              {"seconds", s.seconds}});
  } else {
    double worst[3] = {};
    for (const Row& r : s.rows) {
      double& w = worst[static_cast<int>(r.activations)];
      w = std::max(w, r.worst / r.bound);
    }
    out("\n{} rows, {} operations compared bit for bit, {:.0f} s\n", s.rows.size(), runs,
        s.seconds);
    for (const Activations a : modes(o.activations))
      out("worst {}: {:.0f} % of its bound\n", activations_name(a),
          100 * worst[static_cast<int>(a)]);
    for (const std::string& line : s.skipped) out("not run, too little memory: {}\n", line);
    out("failed: {}\n", failed);
  }
  flush_output();
  if (failed == 0) return;
  for (const Row& r : s.rows)
    if (!r.failure.empty())
      fail("{} of {} rows failed; first {} {} {}: {}", failed, s.rows.size(), shape_name(r.shape),
           type_name(r.shape), activations_name(r.activations), r.failure);
}

// The published form and Nibble's on a device, launch by launch, in whatever order its blocks come.
void explain_device(bool json) {
  constexpr int kLaunches = 200;
  const auto schedules = cuda::make_schedules({});  // throws where there is no device
  auto rows = Json::array();
  if (!json)
    out("The published in-place form on this device, {} launches each; a launch is corrupt when a\n"
        "bit of y is not what the same kernel gives when it writes the sum elsewhere:\n\n"
        "  {:>11}  {:>17}  {:>10}  {:>21}  {:>15}\n",
        kLaunches, "N x K", "in place, corrupt", "rows wrong", "out of place, corrupt",
        "Nibble, corrupt");
  for (const auto& [n, k] :
       {std::pair<std::int64_t, std::int64_t>{16, 128}, {256, 2048}, {8704, 5120}, {34816, 5120}}) {
    const verify::Problem p(n, k);
    const auto count = [&](bool in_place) {
      return cuda::count_published(p.weight, p.residual, p.delta, kLaunches, in_place);
    };
    const cuda::PublishedCount in_place = count(true), apart = count(false);
    const double wrong = static_cast<double>(in_place.rows_wrong) / static_cast<double>(n) /
                         std::max(in_place.corrupt, 1);
    const verify::StressResult ours = verify::stress(verify::int4_case(n, k), Activations::Int16,
                                                     schedules, kLaunches, [](double) {});
    require(ours.differing == 0, "{}x{}: bits differ; {}", n, k, ours.first);
    if (!json)
      out("  {:>11}  {:>17}  {:>8.1f} %  {:>21}  {:>15}\n", fmt::format("{}x{}", n, k),
          in_place.corrupt, 100 * wrong, apart.corrupt, ours.differing);
    rows.push_back({{"n", n},
                    {"k", k},
                    {"launches", kLaunches},
                    {"in_place_corrupt", in_place.corrupt},
                    {"rows_wrong", wrong},
                    {"out_of_place_corrupt", apart.corrupt},
                    {"nibble_corrupt", ours.differing}});
  }
  if (json) out_json({{"rows", rows}});
}

Json story_json(const verify::Story& s) {
  auto lines = Json::array(), curve = Json::array();
  for (const auto& l : s.lines)
    lines.push_back({{"n", l.n},
                     {"k", l.k},
                     {"in_order", l.in_order},
                     {"in_place", l.in_place},
                     {"split_above_512", l.split},
                     {"nibble", l.nibble},
                     {"nibble_bits_equal", l.nibble_bits}});
  for (const auto& [late, error] : s.curve) curve.push_back({{"late", late}, {"error", error}});
  return {{"lines", lines}, {"late", verify::kPublishedLate}, {"curve", curve}};
}

void explain(bool json) {
  const verify::Story s = verify::tell_story();
  if (json) return out_json(story_json(s));
  const auto& first = s.lines.front();
  out("The published defect\n"
      "====================\n"
      "A decode step adds a layer's output (delta) to the residual, normalises the sum, and\n"
      "multiplies it by INT4 weights. The published fused kernel does all three in one launch:\n"
      "every work-group reads residual and delta and computes the norm for itself, and work-group\n"
      "0 also writes the sum back into the residual. A work-group that starts after that write\n"
      "adds delta twice. No error is raised; y is plausible and wrong.\n\n"
      "Relative RMS error of y at {}x{} against a double reference on weights that were not\n"
      "quantised, by the share of work-groups that start late (work-group 0 is always first):\n\n",
      first.n, first.k);
  for (const auto& [late, error] : s.curve)
    out("  late {:>4.0f} %   {:.3f}  {}\n", 100 * late, error,
        std::string(static_cast<std::size_t>(error * 120), '#'));
  out("\n{:.2f} is the noise of INT4 itself. Two thirds late give {:.2f}, near the published 0.28. "
      "How\n"
      "many are late is up to the device and what else runs on it: a launch promises no order.\n\n"
      "The published repair keeps the in-place kernel for N <= 512, in the hope that its\n"
      "work-groups all start together, and above runs a prepass and a plain GEMV, which contracts\n"
      "only floor(K / 512) * 512 columns. Two thirds late again:\n\n"
      "  {:>11}  {:>9}  {:>9}  {:>9}  {:>9}\n",
      first.in_order, first.in_place, "N x K", "in time", "in place", "repaired", "Nibble");
  for (const auto& l : s.lines)
    out("  {:>11}  {:>9.3f}  {:>9.3f}  {:>9.3f}  {:>9.3f}  {}\n", fmt::format("{}x{}", l.n, l.k),
        l.in_order, l.in_place, l.split, l.nibble,
        l.nibble_bits ? "same bits as one thread" : "BITS DIFFER");
  out("\n  256x2048   N <= 512, so the repair is the broken kernel (a mixture's router).\n"
      "  5120x4352  the repair drops columns 4096 to 4351.\n"
      "  1024x256   the repair contracts no column at all and returns zeros.\n\n"
      "Nibble's column is its own operation, run by five threads of which one goes first and the\n"
      "others are held until it has written its outputs. It cannot fail that way: an operation\n"
      "never writes what it reads. The residual goes to another buffer, aliases are refused, and\n"
      "no order of work-groups can change a bit. Try it: nibble verify --quick\n");
}

void stress(const Options& o) {
  const bool sweep = o.shapes.empty() && o.device == cuda::kDevice;
  if (o.shapes.empty() && !sweep)
    fail_usage("--stress needs --shape NxK, such as --shape 256x2048 (--device cuda: or none)");
  std::vector<Case> cases;
  for (const std::string& s : o.shapes) cases.push_back(parse_shape(s));
  if (sweep) cases = o.quick ? verify::quick_cases() : verify::full_cases();
  std::vector<std::unique_ptr<Backend>> device;
  std::optional<cuda::Crowd> crowd;
  if (o.device == cuda::kDevice) {
    device = cuda::make_schedules({66, 132, 1000});
    crowd.emplace(static_cast<std::uint64_t>(o.stress));
  }
  const int threads = o.threads == 0 ? available_cores() : o.threads;
  auto rows = Json::array();
  std::int64_t calls = 0, differing = 0;
  std::string failure;
  for (const Case& c : cases) {
    const std::string s = shape_name(c) + " " + type_name(c);
    for (const Activations a : modes(o.activations)) {
      if (!is_quantised(c.type) && a != Activations::Fp32) continue;
      Progress progress("stress " + s);
      const auto begin = std::chrono::steady_clock::now();
      const auto show = [&](double f) { progress.show(f); };
      const verify::StressResult r = device.empty() ? verify::stress(c, a, threads, o.stress, show)
                                                    : verify::stress(c, a, device, o.stress, show);
      const double seconds =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      if (!r.first.empty() && failure.empty()) failure = s + ": " + r.first;
      calls += r.calls, differing += r.differing;
      if (!o.json)
        out("{} {}: {} calls under random delays, {} with other bits, {:.0f} s\n", s,
            activations_name(a), r.calls, r.differing, seconds);
      rows.push_back({{"n", c.n},
                      {"k", c.k},
                      {"type", weight_type_name(c.type)},
                      {"group", c.group},
                      {"pieces", c.pieces},
                      {"activations", activations_name(a)},
                      {"calls", r.calls},
                      {"differing", r.differing},
                      {"seconds", seconds}});
    }
  }
  if (o.json)
    out_json({{"rows", rows}, {"device", o.device}, {"failed", failure.empty() ? 0 : 1}});
  else if (crowd)
    out("{} rows, {} calls, {} with other bits; {} launches of others in between\n", rows.size(),
        calls, differing, crowd->launches());
  flush_output();
  require(failure.empty(), "bits differ; {}", failure);
}

void run(const Options& o) {
  if (o.explain) return o.device == cuda::kDevice ? explain_device(o.json) : explain(o.json);
  if (o.stress > 0) return stress(o);
  sweep(o);
}

}  // namespace

void add_verify(CLI::App& app) {
  auto* cmd = app.add_subcommand(
      "verify", "Check the fused operation on this machine: its error, and that its bits agree");
  const auto o = std::make_shared<Options>();
  auto* quick = cmd->add_flag("--quick", o->quick,
                              "Small shapes that reach every kernel and every tail: a minute");
  cmd->add_option("--device", o->device, "The backend to check")
      ->check(CLI::IsMember(backend_names()))
      ->capture_default_str();
  cmd->add_option("--activations", o->activations, "int16, int8, fp32: these only; all by default")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember({"int16", "int8", "fp32"}));
  cmd->add_option("--shape", o->shapes, "NxK,...: INT4 weights of these shapes only")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->excludes(quick);
  auto* stress = cmd->add_option("--stress", o->stress,
                                 "Instead, call the operation so often while its threads (cuda: "
                                 "its blocks) are delayed at random")
                     ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40));
  cmd->add_option("--threads", o->threads, "Threads for --stress; 0: every core")
      ->check(CLI::Range(0, 1024))
      ->needs(stress);
  cmd->add_flag("--explain", o->explain,
                "Instead, tell the published defect, with its errors computed now (cuda: "
                "launched now)")
      ->excludes(quick)
      ->excludes(stress);
  cmd->add_flag("--json", o->json, "Print a JSON object");
  cmd->footer(
      "A row is a shape, a weight type and an activation mode of residual-add + RMSNorm + GEMV:\n"
      "  w. error  relative RMS error of y against unquantised weights (about 0.10 for INT4 in\n"
      "            groups of 128 on normal data)\n"
      "  worst     worst element against a double reference on the dequantised weights, in units\n"
      "            of sum |w x|, and the bound it must keep\n"
      "  bits      equal over threads 1, 2, 3, 5, 8 (cuda: blocks 1, 7, 66, 132 and more, and\n"
      "            against the CPU), over repetition, instruction sets, M = 1..8, each row alone "
      "and at every place in a batch of 8, one thread first and the\n"
      "            others late, fused against prepass + GEMV; or what differs\n"
      "Exit code 1 when a row fails. The full sweep takes minutes and up to 1.5 GB.\n\n"
      "  nibble verify --quick\n"
      "  nibble verify --shape 8704x5120,256x2048 --activations int16\n"
      "  nibble verify --explain\n"
      "  nibble verify --stress 1000000 --shape 256x2048 --threads 8\n"
      "  nibble verify --device cuda --stress 1000 --activations int16");
  cmd->callback([o] { run(*o); });
}

}  // namespace nibble::cli
