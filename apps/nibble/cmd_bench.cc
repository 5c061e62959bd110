// nibble bench: how fast a model runs here (`model`), and how fast memory is read (`bandwidth`).
#include <fmt/ranges.h>

#include <cmath>

#include "base/error.h"
#include "checkpoint/random_checkpoint.h"
#include "commands.h"
#include "common.h"
#include "console.h"
#include "engine/bandwidth.h"
#include "engine/sampler.h"
#include "engine/stepper.h"

namespace nibble::cli {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct Options {
  ModelFlags model;
  std::string config;  // a published model's shapes, with random weights
  bool random_weights = false;
  std::int64_t layers = 0;  // 0: all
  std::vector<std::int64_t> prompt{512}, generate{128}, depth{0};
  std::vector<int> batch{1};
  std::vector<int> threads{0};
  int repeat = 5;
  std::string format = "table";
  bool json = false;
};

struct Row {
  std::string test;
  std::int64_t depth = 0;
  int batch = 1;
  int threads = 0;
  double rate = 0, deviation = 0;  // tokens a second
  double bytes = 0;                // read per token
  double fraction = 0;             // of the read bandwidth
};

// One thing to time: `tokens` on top of `depth` positions, in one go, or one by one of each of
// `batch` sequences.
struct Test {
  std::int64_t tokens, depth;
  bool decode;
  int batch = 1;
};

class Bench {
 public:
  Bench(Engine& engine, double bandwidth) : engine_(engine), bandwidth_(bandwidth) {}

  Row run(const Test& t, int repeat, Progress& progress) {
    for (int slot = 0; slot < t.batch; ++slot) {
      fill(slot, t.depth);
      engine_.checkpoint(slot);
    }
    double sum = 0, squares = 0;
    for (int i = -1; i < repeat; ++i) {  // the first run warms up
      for (int slot = 0; slot < t.batch; ++slot) engine_.truncate(slot, t.depth);
      const auto begin = Clock::now();
      t.decode ? decode(t.batch, t.tokens) : fill(0, t.depth + t.tokens);
      const double rate = static_cast<double>(t.tokens * t.batch) /
                          std::chrono::duration<double>(Clock::now() - begin).count();
      progress.show((i + 2.0) / (repeat + 1.0), name(t));
      if (i < 0) continue;
      sum += rate;
      squares += rate * rate;
    }
    const double mean = sum / repeat;
    const double variance = repeat > 1 ? (squares - repeat * mean * mean) / (repeat - 1) : 0;
    const double bytes = bytes_per_token(t);
    return {name(t), t.depth,
            t.batch, engine_.threads(),
            mean,    std::sqrt(std::max(variance, 0.0)),
            bytes,   bandwidth_ > 0 ? bytes * mean / bandwidth_ : 0};
  }

 private:
  static std::string name(const Test& t) {
    return fmt::format("{}{}", t.decode ? "tg" : "pp", t.tokens);
  }

  std::int32_t token(std::int64_t position) const {  // any text will do, but not one token only
    return static_cast<std::int32_t>(uniform(0, position) * static_cast<double>(engine_.vocab()));
  }

  // Prefills until the slot holds `end` positions, in chunks as generation does.
  void fill(int slot, std::int64_t end) {
    std::vector<std::int32_t> ids;
    for (std::int64_t at; (at = engine_.length(slot)) < end;) {
      ids.clear();
      const std::int64_t stop = chunk_end(at, end, engine_.prefill_rows());
      for (std::int64_t i = at; i < stop; ++i) ids.push_back(token(i));
      const Engine::Input input{slot, ids,
                                stop == end ? Engine::Logits::Last : Engine::Logits::None};
      engine_.forward({&input, 1});
    }
  }

  void decode(int batch, std::int64_t steps) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(batch));
    for (std::int64_t i = 0; i < steps; ++i) {
      std::vector<Engine::Input> inputs;
      for (int slot = 0; slot < batch; ++slot) {  // each sequence has a text of its own
        std::int32_t& id = ids[static_cast<std::size_t>(slot)];
        id = token(engine_.length(slot) + slot * engine_.context());
        inputs.push_back({slot, {&id, 1}, Engine::Logits::Last, true});
      }
      engine_.forward_top(inputs);  // a device keeps its logits
    }
  }

  // Weights are read once a step (a mixture of several sequences reads more of its experts, which
  // is not counted), and the cache of each sequence up to where the step ends.
  double bytes_per_token(const Test& t) const {
    const EngineMemory memory = engine_.memory();
    double bytes = 0;
    for (std::int64_t at = t.depth; at < t.depth + t.tokens;) {
      at = t.decode ? at + 1 : chunk_end(at, t.depth + t.tokens, engine_.prefill_rows());
      bytes += static_cast<double>(memory.weights_per_token) / t.batch +
               2 * static_cast<double>(memory.state_per_step) +
               static_cast<double>(at) * static_cast<double>(memory.kv_per_position);
    }
    return bytes / static_cast<double>(t.tokens);
  }

  Engine& engine_;
  double bandwidth_;
};

void print_rows(const std::string& format, const std::vector<Row>& rows) {
  const bool csv = format == "csv", markdown = format == "markdown";
  if (csv) {
    out("test,depth,threads,tokens_per_second,stddev,bytes_per_token,gb_per_second,"
        "bandwidth_fraction,batch\n");
    for (const Row& r : rows)
      out("{},{},{},{:.3f},{:.3f},{:.0f},{:.4f},{:.4f},{}\n", r.test, r.depth, r.threads, r.rate,
          r.deviation, r.bytes, r.rate * r.bytes / 1e9, r.fraction, r.batch);
    return;
  }
  const char* edge = markdown ? "| " : "";
  const char* bar = markdown ? " | " : "  ";
  const char* end = markdown ? " |\n" : "\n";
  const auto line = [&](const auto&... cell) {
    const std::vector<std::string> cells{fmt::format("{:>8}", cell)...};
    out("{}{}{}", edge, fmt::join(cells, bar), end);
  };
  line("test", "depth", "batch", "threads", "tok/s", "+/-", "MB/token", "GB/s", "% of read");
  if (markdown) out("|---|---|---|---|---|---|---|---|---|\n");
  for (const Row& r : rows)
    line(r.test, r.depth, r.batch, r.threads, fmt::format("{:.2f}", r.rate),
         fmt::format("{:.2f}", r.deviation), fmt::format("{:.2f}", r.bytes / 1e6),
         fmt::format("{:.2f}", r.rate * r.bytes / 1e9), fmt::format("{:.1f}", 100 * r.fraction));
}

void print_memory(const EngineMemory& m, double seconds) {
  const auto mb = [](std::uint64_t bytes) { return static_cast<double>(bytes) / 1e6; };
  out("memory: weights {:.1f} MB, KV cache {:.1f}, recurrent state {:.1f}, activations and logits "
      "{:.1f}, inside operations {:.1f}\nloaded in {:.1f} s\n",
      mb(m.weights), mb(m.kv_cache), mb(m.state), mb(m.scratch), mb(m.operations), seconds);
}
Json memory_json(const EngineMemory& m) {
  return {{"weights", m.weights},
          {"kv_cache", m.kv_cache},
          {"state", m.state},
          {"scratch", m.scratch},
          {"operations", m.operations}};
}

std::unique_ptr<Checkpoint> open_or_make(const Options& o) {
  if (o.config.empty() == o.model.path.empty())
    fail_usage("give a MODEL, or --config NAME --random-weights");
  if (o.config.empty()) {
    if (o.layers > 0 || o.random_weights)
      fail_usage("--layers and --random-weights go with --config");
    return open_model(o.model);
  }
  if (!o.random_weights)
    fail_usage("--config {} has no weights of its own: add --random-weights", o.config);
  ModelConfig c = known_config(o.config);
  if (o.layers > c.layers) fail_usage("--layers: {} has {}", o.config, c.layers);
  if (o.layers > 0) c.layers = o.layers, c.attends.resize(static_cast<std::size_t>(o.layers));
  return random_checkpoint(c);
}

void bench_model(const Options& o) {
  std::vector<Test> tests;
  std::int64_t context = 1;
  for (const std::int64_t depth : o.depth) {
    for (const std::int64_t n : o.prompt)
      if (n > 0) tests.push_back({n, depth, false});
    for (const std::int64_t n : o.generate)
      for (const int batch : o.batch)
        if (n > 0) tests.push_back({n, depth, true, batch});
  }
  if (tests.empty()) fail_usage("nothing to do: --prompt and --generate are both 0");
  int slots = 1;
  for (const Test& t : tests)
    context = std::max(context, t.depth + t.tokens), slots = std::max(slots, t.batch);

  const auto checkpoint = open_or_make(o);
  std::vector<Row> rows;
  EngineMemory memory;
  double loading = 0;  // seconds
  for (const int threads : o.threads) {
    ModelFlags flags = o.model;
    flags.threads = threads;
    const auto begin = Clock::now();
    const auto engine = load_engine(*checkpoint, flags, context, slots);
    loading = std::chrono::duration<double>(Clock::now() - begin).count();
    const double device = engine->read_bandwidth();
    Bench bench(*engine, device > 0 ? device : measure_bandwidth(engine->threads(), 0.5).median);
    for (const Test& t : tests) {
      Progress progress("bench");
      rows.push_back(bench.run(t, o.repeat, progress));
    }
    memory = engine->memory();
  }
  const std::string format = o.json ? "json" : o.format;
  if (format != "json") print_rows(format, rows);
  if (format == "table") print_memory(memory, loading);
  if (format != "json") return;
  auto list = Json::array();
  for (const Row& r : rows)
    list.push_back({{"test", r.test},
                    {"tokens_per_second", r.rate},
                    {"stddev", r.deviation},
                    {"bytes_per_token", r.bytes},
                    {"gb_per_second", r.rate * r.bytes / 1e9},
                    {"bandwidth_fraction", r.fraction},
                    {"threads", r.threads},
                    {"depth", r.depth},
                    {"batch", r.batch},
                    {"repeat", o.repeat},
                    {"activations", o.model.activations},
                    {"device", o.model.device},
                    {"load_seconds", loading},
                    {"memory", memory_json(memory)}});
  out_json(list);
}

void bench_bandwidth(int threads, double seconds, bool json) {
  const Bandwidth b = measure_bandwidth(threads, seconds);
  if (!json)
    return out(
        "read {:.2f} GB/s (quartiles {:.2f} to {:.2f}, {} passes over {} MiB, {} threads, "
        "last cache {} MiB)\n",
        b.median / 1e9, b.low / 1e9, b.high / 1e9, b.passes, b.buffer_bytes >> 20, b.threads,
        last_level_cache() >> 20);
  out_json({{"gb_per_second", b.median / 1e9},
            {"quartile_low", b.low / 1e9},
            {"quartile_high", b.high / 1e9},
            {"passes", b.passes},
            {"buffer_bytes", b.buffer_bytes},
            {"cache_bytes", last_level_cache()},
            {"threads", b.threads}});
}

void add_bench_model(CLI::App& bench) {
  auto* cmd = bench.add_subcommand("model", "Prompt and decode speed of a model");
  const auto o = std::make_shared<Options>();
  add_model(*cmd, o->model);
  cmd->get_option("MODEL")->required(false);
  cmd->add_option("--config", o->config, "The shapes of a published model instead of a MODEL")
      ->check(CLI::IsMember(known_configs()));
  cmd->add_flag("--random-weights", o->random_weights,
                "With --config: INT4 weights (group 128, the embedding too) made in memory");
  cmd->add_option("--layers", o->layers, "With --config: the first layers only; 0: all")
      ->check(CLI::NonNegativeNumber);
  const auto lengths = [&](const char* name, std::vector<std::int64_t>& value, const char* help) {
    cmd->add_option(name, value, help)
        ->delimiter(',')
        ->allow_extra_args(false)
        ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 24))
        ->capture_default_str();
  };
  lengths("--prompt", o->prompt, "Prompt lengths to time (pp512); 0: none");
  lengths("--generate", o->generate, "Numbers of decode steps to time (tg128); 0: none");
  lengths("--depth", o->depth, "Positions in the cache before the timing begins");
  cmd->add_option("--batch", o->batch, "Numbers of sequences that decode together")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, Engine::kMaxSequences))
      ->capture_default_str();
  cmd->add_option("--threads", o->threads, "Numbers of threads; 0: every core this process may use")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  cmd->add_option("--repeat", o->repeat, "Timed runs of each test, after one to warm up")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  add_device(*cmd, o->model);
  cmd->add_option("--format", o->format, "table, markdown, csv or json")
      ->check(CLI::IsMember({"table", "markdown", "csv", "json"}))
      ->capture_default_str();
  cmd->add_flag("--json", o->json, "The same as --format json");
  cmd->footer(
      "Mean and standard deviation over the runs. A token's bytes are the weights a step reads and "
      "the\ncache; tokens/s are those of all sequences of a batch; GB/s is those times tokens/s, "
      "and its percentage is of the read bandwidth "
      "measured just before.\n\n"
      "  nibble bench model model.gguf\n"
      "  nibble bench model model.gguf --prompt 0 --generate 64 --depth 0,1024 --threads 1,2\n"
      "  nibble bench model model.gguf --activations int8 --json\n"
      "  nibble bench model --config qwen3.6-27b --random-weights --layers 16");
  cmd->callback([o] { bench_model(*o); });
}

void add_bench_bandwidth(CLI::App& bench) {
  struct Flags {
    int threads = 0;
    double seconds = 2;
    bool json = false;
  };
  auto* cmd = bench.add_subcommand("bandwidth", "Read bandwidth of this machine's memory");
  const auto f = std::make_shared<Flags>();
  add_threads(*cmd, f->threads);
  cmd->add_option("--seconds", f->seconds, "How long to measure")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  cmd->add_flag("--json", f->json, "Print a JSON object");
  cmd->footer(
      "Every thread sums its part of a buffer several times larger than the last cache: the bound "
      "of "
      "decoding.\n\n"
      "  nibble bench bandwidth --threads 2");
  cmd->callback([f] { bench_bandwidth(f->threads, f->seconds, f->json); });
}

}  // namespace

void add_bench(CLI::App& app) {
  auto* cmd = app.add_subcommand(
      "bench", "Measure speed: a model's, the fused operation's, or the memory's");
  add_bench_model(*cmd);
  add_bench_fused(*cmd);
  add_bench_bandwidth(*cmd);
}

}  // namespace nibble::cli
