// nibble quantize: a checkpoint to INT4 on disk, with the error of every matrix.
#include <chrono>
#include <csignal>

#include "base/error.h"
#include "checkpoint/quantize.h"
#include "commands.h"
#include "common.h"
#include "console.h"

namespace nibble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string source, target, method = "search", embedding = "keep";
  QuantizeOptions quantize;
  bool json = false;
};

volatile std::sig_atomic_t interrupted = 0;

// The first signal lets the work unwind, so that the temporary directory goes; the second kills.
void on_signal(int signal) {
  interrupted = 1;
  std::signal(signal, SIG_DFL);
}

QuantizeReport quantize_visibly(const Options& o) {
  QuantizeOptions q = o.quantize;
  q.method = o.method == "rtn" ? int4::Method::Rtn : int4::Method::Search;
  q.int4_embedding = o.embedding == "int4";
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, on_signal);
  Progress progress("quantizing");
  q.progress = [&](double fraction, std::string_view tensor) {
    require(interrupted == 0, "interrupted; nothing was written");
    progress.show(fraction, printable(tensor));
  };
  return quantize(o.source, o.target, q);
}

Json to_json(const Options& o, const QuantizeReport& r, double seconds) {
  auto tensors = Json::array();
  for (const QuantizedMatrix& m : r.matrices)
    tensors.push_back({{"name", m.name},
                       {"shape", {m.n, m.k}},
                       {"from", m.from},
                       {"to", m.to},
                       {"relative_rms_error", m.relative_rms},
                       {"max_error", m.max_error},
                       {"bytes_from", m.bytes_from},
                       {"bytes_to", m.bytes_to}});
  return {{"source", o.source},
          {"target", o.target},
          {"group", o.quantize.group},
          {"method", o.method},
          {"relative_rms_error", r.relative_rms},
          {"max_error", r.max_error},
          {"bytes_from", r.bytes_from},
          {"bytes_to", r.bytes_to},
          {"seconds", seconds},
          {"tensors", tensors}};
}

void quantize_command(const Options& o) {
  const auto start = std::chrono::steady_clock::now();
  const QuantizeReport r = quantize_visibly(o);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const std::string& line : r.notices) note(line);
  if (o.json) return out_json(to_json(o, r, seconds));
  out("{:<48} {:>14} {:>9} {:>9} {:>9} {:>9}\n", "matrix", "from", "to", "RMS error", "max error",
      "size");
  for (const QuantizedMatrix& m : r.matrices)
    out("{:<48} {:>14} {:>9} {:>7.3f} % {:>9.2g} {:>9}\n", printable(m.name), printable(m.from),
        m.to, 100 * m.relative_rms, m.max_error, human_bytes(m.bytes_to));
  out("\nINT4 matrices: RMS error {:.3f} % of the weights' RMS, largest error {:.2g}\n"
      "{} -> {} in {:.1f} s: {}\n",
      100 * r.relative_rms, r.max_error, human_bytes(r.bytes_from), human_bytes(r.bytes_to),
      seconds, printable(o.target));
}

}  // namespace

void add_quantize(CLI::App& app) {
  auto* cmd = app.add_subcommand("quantize", "Turn a model into INT4 on disk");
  cmd->footer(
      "Every linear weight of the decoder, and a separate head, becomes INT4: per group of\n"
      "consecutive inputs one fp16 scale and a 4-bit code each. DST is a compressed-tensors\n"
      "(pack-quantized) folder with configuration, tokenizer and chat template, which Nibble and\n"
      "other engines load. It appears complete or not at all.\n\n"
      "  nibble quantize ./Llama-3.2-1B ./Llama-3.2-1B-int4\n"
      "  nibble quantize model.gguf ./model-int4 --group 64\n"
      "  nibble quantize SRC DST --keep 'layers\\.(0|31)\\.|down_proj'   these stay 16 bit\n\n"
      "A smaller group is more accurate and larger: 4.125 bits a weight at 128, 4.25 at 64, 4.5 "
      "at\n"
      "32. It must divide the inputs of every matrix; an error names those it does not. A matrix\n"
      "stored as symmetric INT4 in such groups (GGUF Q4_0 with --group 32) is taken over bit for\n"
      "bit.");
  auto o = std::make_shared<Options>();
  cmd->add_option("SRC", o->source, "A Hugging Face folder (safetensors) or a GGUF file")
      ->required();
  cmd->add_option("DST", o->target, "The folder to create; it must not exist")->required();
  cmd->add_option("--group", o->quantize.group, "Weights that share a scale")
      ->check(CLI::IsMember({128, 64, 32}))
      ->capture_default_str();
  cmd->add_option("--method", o->method,
                  "How scales are chosen: search (default; least weighted error) or rtn (round to "
                  "nearest; fastest)")
      ->check(CLI::IsMember({"rtn", "search"}))
      ->capture_default_str();
  cmd->add_option("--keep", o->quantize.keep,
                  "Matrices whose name matches this regular expression (PCRE2) stay 16 bit");
  cmd->add_option("--embedding", o->embedding,
                  "The embedding, and a head tied to it: keep (16 bit, default) or int4 (smaller, "
                  "costs accuracy)")
      ->check(CLI::IsMember({"keep", "int4"}))
      ->capture_default_str();
  cmd->add_option("--shard-size", o->quantize.shard_bytes,
                  "Largest weights file, e.g. 5GB, 500MB; more are written as shards")
      ->transform(CLI::AsSizeValue(true))
      ->capture_default_str();
  add_threads(*cmd, o->quantize.threads);
  cmd->add_flag("--json", o->json, "The report as JSON");
  cmd->callback([o] { quantize_command(*o); });
}

}  // namespace nibble::cli
