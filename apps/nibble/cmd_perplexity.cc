// nibble perplexity: how well a model predicts a text.
#include "base/error.h"
#include "commands.h"
#include "common.h"
#include "console.h"
#include "engine/perplexity.h"

namespace nibble::cli {
namespace {

struct Options {
  ModelFlags model;
  std::string text;
  std::int64_t window = 512, windows = 0;
  bool documents = false, json = false;
};

void perplexity_of(const Options& o) {
  const std::string text = read_text(o.text);
  const auto checkpoint = open_model(o.model);
  const auto spec = checkpoint->tokenizer();
  const Tokenizer tokenizer = load_tokenizer(*checkpoint, o.model);
  const auto ids = o.documents ? document_ids(text, tokenizer, checkpoint->generation())
                               : tokenizer.encode(text, false, true);
  PerplexityOptions options;
  options.score_all = o.documents;
  options.window = o.window;
  options.windows = o.windows;
  if (!spec->prefix_ids.empty() && !o.documents) options.bos = spec->prefix_ids.front();
  const auto engine = load_engine(*checkpoint, o.model, o.window);
  EngineStepper stepper(*engine);
  Perplexity p;
  {
    Progress progress("perplexity");
    options.progress = [&](std::int64_t done, std::int64_t all, double so_far) {
      progress.show(static_cast<double>(done) / static_cast<double>(all),
                    fmt::format("({} of {} windows, {:.4f} so far)", done, all, so_far));
    };
    p = perplexity(stepper, ids, options);
  }
  if (!o.json)
    return out(
        "perplexity {:.4f} +/- {:.4f} ({} windows of {}, {} tokens scored, {} activations)\n",
        p.perplexity, p.standard_error, p.windows, o.window, p.tokens, o.model.activations);
  out_json({{"perplexity", p.perplexity},
            {"stderr", p.standard_error},
            {"windows", p.windows},
            {"window", o.window},
            {"tokens", p.tokens},
            {"text_tokens", ids.size()},
            {"activations", o.model.activations},
            {"device", o.model.device}});
}

}  // namespace

void add_perplexity(CLI::App& app) {
  auto* cmd = app.add_subcommand("perplexity", "Measure how well a model predicts a text");
  const auto o = std::make_shared<Options>();
  add_model(*cmd, o->model);
  cmd->add_option("--text", o->text, "The text file; - reads standard input")->required();
  cmd->add_option("--window", o->window, "Tokens in a window; each starts from nothing")
      ->check(CLI::Range(std::int64_t{4}, std::int64_t{1} << 30))
      ->capture_default_str();
  cmd->add_option("--windows", o->windows, "Stop after this many windows; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  cmd->add_flag(
      "--documents", o->documents,
      "Each line is a document and begins with the model's BOS; all of a window is scored");
  add_device(*cmd, o->model);
  add_threads(*cmd, o->model.threads);
  cmd->add_flag("--json", o->json, "Print a JSON object: perplexity, stderr, windows, ...");
  cmd->footer(
      "The rule of llama.cpp's llama-perplexity, so that figures compare: windows do not overlap, "
      "the\nsecond half of each is scored, and a tokenizer that begins texts with BOS gets one in "
      "each window.\n\n"
      "  nibble perplexity model.gguf --text wiki.test.raw\n"
      "  nibble perplexity model.gguf --text book.txt --windows 8 --activations int8 --json");
  cmd->callback([o] { perplexity_of(*o); });
}

}  // namespace nibble::cli
