// nibble logits: the logits of every position, as a NumPy file.
#include "base/error.h"
#include "base/file.h"
#include "commands.h"
#include "common.h"
#include "console.h"
#include "engine/stepper.h"

namespace nibble::cli {
namespace {

struct Options {
  ModelFlags model;
  std::optional<std::string> tokens, tokens_file;
  std::string out;
};

// The head of a NumPy 1.0 file: a C-ordered little-endian float32 array [rows, columns].
std::string npy_head(std::int64_t rows, std::int64_t columns) {
  std::string dict =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, columns);
  constexpr std::size_t kPrefix = 10, kAlign = 64;
  dict.append((kAlign - (kPrefix + dict.size() + 1) % kAlign) % kAlign, ' ');
  dict += '\n';
  const auto n = static_cast<unsigned>(dict.size());
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(n & 255) +
         static_cast<char>(n >> 8) + dict;
}

void logits(const Options& o) {
  if (o.tokens.has_value() == o.tokens_file.has_value())
    fail_usage("give the token ids with --tokens 1,2,3 or with --tokens-file FILE");
  const auto ids = parse_ids(o.tokens ? *o.tokens : read_text(*o.tokens_file));
  if (ids.empty()) fail_usage("no token ids given");
  const auto total = static_cast<std::int64_t>(ids.size());
  const auto checkpoint = open_model(o.model);
  const auto engine = load_engine(*checkpoint, o.model, total);
  EngineStepper stepper(*engine);

  AtomicFile file(o.out);
  const std::string head = npy_head(total, engine->vocab());
  file.write(head.data(), head.size());
  Progress progress("logits");
  prefill(stepper, 0, ids, 0, [&](std::int64_t first, std::span<const float> rows) {
    file.write(rows.data(), rows.size_bytes());
    progress.show(static_cast<double>(first) / static_cast<double>(total));
  });
  file.commit();
}

}  // namespace

void add_logits(CLI::App& app) {
  auto* cmd = app.add_subcommand("logits", "Write the logits of every position to a NumPy file");
  const auto o = std::make_shared<Options>();
  add_model(*cmd, o->model);
  cmd->add_option("--tokens", o->tokens, "Token ids, with commas between them");
  cmd->add_option("--tokens-file", o->tokens_file,
                  "A text file of token ids (commas or white space between them); - reads "
                  "standard input");
  cmd->add_option("--out", o->out, "The .npy file to write: float32 [tokens, vocab]")->required();
  add_device(*cmd, o->model);
  add_threads(*cmd, o->model.threads);
  cmd->footer(
      "Row t holds the logits after token t, with nothing added in front. Works without a "
      "tokenizer.\nThe file appears under its name only when it is complete.\n\n"
      "  nibble logits model.gguf --tokens 1,2,3 --out logits.npy\n"
      "  nibble tokenize model.gguf --file text.txt --ids |\n"
      "    nibble logits model.gguf --tokens-file - --out logits.npy --activations fp32");
  cmd->callback([o] { logits(*o); });
}

}  // namespace nibble::cli
