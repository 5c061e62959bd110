#include "common.h"

#include <sys/utsname.h>

#include <cstdio>
#include <fstream>

#include "backend/backend.h"
#include "base/error.h"
#include "console.h"

namespace nibble::cli {

void add_model(CLI::App& cmd, ModelFlags& flags) {
  cmd.add_option("MODEL", flags.path, "A GGUF file, or a Hugging Face folder")->required();
  cmd.add_flag(
      "--keep-16bit", flags.keep_16bit,
      "Keep GGUF types without kernels (Q5_0, Q4_K, ...) as 16 bit instead of requantising");
}

void add_device(CLI::App& cmd, ModelFlags& flags) {
  cmd.add_option("--activations", flags.activations,
                 "How linear operations take their input: int16 (default; same bits everywhere), "
                 "int8 (faster, slightly worse), fp32 (not rounded; the reference)")
      ->check(CLI::IsMember({"int16", "int8", "fp32"}))
      ->capture_default_str();
  cmd.add_option("--device", flags.device,
                 "Where the model runs; cpu:avx2 and the like: with that instruction set")
      ->check(CLI::IsMember(device_names()))
      ->capture_default_str();
  cmd.add_flag(
      "--exact-prefill", flags.exact_prefill,
      "Prompts, too, in the arithmetic of --activations, with the bits of the CPU (a Hopper "
      "GPU takes those of int16 in fp16, several times as fast)");
  cmd.add_flag("--check-finite", flags.check_finite,
               "Stop at the first operation that gives NaN or infinity and name it (slower)");
}

void add_threads(CLI::App& cmd, int& threads) {
  cmd.add_option("--threads", threads, "Threads; 0: every core this process may use")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

void add_context(CLI::App& cmd, std::int64_t& context) {
  cmd.add_option("--context", context,
                 "Positions the cache holds, prompt and answer together; 0: the model's maximum, "
                 "at most 4096")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

std::unique_ptr<Checkpoint> open_model(const ModelFlags& flags) {
  auto checkpoint = Checkpoint::open(flags.path, {.keep_16bit = flags.keep_16bit});
  for (const std::string& line : checkpoint->notices()) note(line);
  return checkpoint;
}

std::unique_ptr<Engine> load_engine(const Checkpoint& checkpoint, const ModelFlags& flags,
                                    std::int64_t context, int slots) {
  EngineOptions options;
  options.activations = flags.activations == "int8"   ? Activations::Int8
                        : flags.activations == "fp32" ? Activations::Fp32
                                                      : Activations::Int16;
  options.device = flags.device;
  options.threads = flags.threads;
  options.context = flags.context > 0 ? flags.context : context;
  options.slots = slots;
  options.exact_prefill = flags.exact_prefill;
  options.check_finite = flags.check_finite;
  Progress progress("loading");
  options.progress = [&](double fraction) { progress.show(fraction); };
  return std::make_unique<Engine>(checkpoint, options);
}

Tokenizer load_tokenizer(const Checkpoint& checkpoint, const ModelFlags& flags) {
  auto spec = checkpoint.tokenizer();
  require(spec.has_value(),
          "{}: no tokenizer (a folder needs tokenizer.json; `nibble logits` works "
          "without one)",
          flags.path);
  return Tokenizer(std::move(*spec));
}

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  utsname u{};
  ::uname(&u);
  return u.machine;
}

verify::Case parse_shape(const std::string& text) {
  std::int64_t n = 0, k = 0;
  int used = 0;
  if (std::sscanf(text.c_str(), "%18ldx%18ld%n", &n, &k, &used) != 2 ||
      static_cast<std::size_t>(used) != text.size())
    fail_usage("--shape: expected NxK, such as 8704x5120, got '{}'", text);
  return verify::int4_case(n, k);
}

}  // namespace nibble::cli
