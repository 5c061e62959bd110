// nibble tokenize: text to token ids and back.
#include <fmt/ranges.h>

#include "base/error.h"
#include "commands.h"
#include "common.h"
#include "console.h"

namespace nibble::cli {
namespace {

struct Options {
  ModelFlags model;
  std::optional<std::string> text, file, decode;
  bool ids = false, no_special = false, json = false;
};

void decode(const Options& o, const Tokenizer& tokenizer) {
  const std::string text = tokenizer.decode(parse_ids(*o.decode), o.no_special);
  if (o.json) return out_json({{"text", text}});
  out_text(text + "\n");
}

void tokenize(const Options& o) {
  if (o.text.has_value() + o.file.has_value() + o.decode.has_value() != 1)
    fail_usage("give one of --text TEXT, --file FILE and --decode IDS");
  const std::string text = o.file ? read_text(*o.file) : o.text.value_or("");
  const auto checkpoint = open_model(o.model);
  const Tokenizer tokenizer = load_tokenizer(*checkpoint, o.model);
  if (o.decode) return decode(o, tokenizer);

  const auto ids = tokenizer.encode(text, !o.no_special, !o.no_special);
  if (o.json) {
    auto pieces = nlohmann::ordered_json::array();
    for (const std::int32_t id : ids) pieces.push_back(tokenizer.token_bytes(id));
    return out_json({{"ids", ids}, {"tokens", pieces}, {"count", ids.size()}});
  }
  if (o.ids) return out("{}\n", fmt::join(ids, ","));
  for (const std::int32_t id : ids) out("{}\t{}\n", id, printable(tokenizer.token_bytes(id)));
}

}  // namespace

void add_tokenize(CLI::App& app) {
  auto* cmd = app.add_subcommand("tokenize", "Turn text into token ids, or ids into text");
  const auto o = std::make_shared<Options>();
  add_model(*cmd, o->model);
  cmd->add_option("--text", o->text, "The text");
  cmd->add_option("--file", o->file, "A text file; - reads standard input");
  cmd->add_option("--decode", o->decode, "Token ids (1,2,3) to turn back into text");
  cmd->add_flag("--ids", o->ids, "Print the ids only, on one line with commas");
  cmd->add_flag("--no-special", o->no_special,
                "Special tokens: none is added (BOS), those in the text are plain text; with "
                "--decode they are left out");
  cmd->add_flag("--json", o->json, "Print a JSON object: ids, tokens, count; or text");
  cmd->footer(
      "Without --ids or --json, a line for each token: its id and its text.\n\n"
      "  nibble tokenize model.gguf --text 'Hello, world'\n"
      "  nibble tokenize model.gguf --file book.txt --ids\n"
      "  nibble tokenize model.gguf --decode 19556,28,905");
  cmd->callback([o] { tokenize(*o); });
}

}  // namespace nibble::cli
