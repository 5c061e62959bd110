// nibble: the command. Exit codes: 0, 1 (it failed), 2 (it was asked for something impossible).
#include <fmt/ranges.h>

#include <csignal>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "commands.h"
#include "console.h"
#include "version.h"

namespace nibble::cli {
namespace {

constexpr int kFailed = 1, kUsage = 2;

int complain(int code, std::string_view what) {
  note(fmt::format("error: {}", what));
  return code;
}

// The innermost command given, and how it is called.
struct Choice {
  const CLI::App* command;
  std::string name;
};

Choice chosen(const CLI::App& app) {
  Choice c{&app, app.get_name()};
  while (!c.command->get_subcommands().empty()) {
    c.command = c.command->get_subcommands().front();
    c.name += " " + c.command->get_name();
  }
  return c;
}

int dispatch(int argc, char** argv) {
  CLI::App app("Runs INT4 language models at the speed of memory, with the same bits every time.",
               "nibble");
  app.footer(
      "A MODEL is a GGUF file or a Hugging Face folder (safetensors).\n\n"
      "  nibble run MODEL -p 'Why is the sky blue?'   answer a prompt\n"
      "  nibble chat MODEL                            a conversation\n"
      "  nibble COMMAND --help                        everything about a command\n\n"
      "Results go to standard output, all else to standard error. Exit codes: 0, 1 (failed), 2 "
      "(usage).");
  app.set_version_flag("--version", version_text);
  add_run(app);
  add_chat(app);
  add_quantize(app);
  add_logits(app);
  add_perplexity(app);
  add_inspect(app);
  add_tokenize(app);
  add_template(app);
  add_bench(app);
  add_verify(app);
  try {
    app.parse(argc, argv);
    const Choice choice = chosen(app);
    if (const auto all = choice.command->get_subcommands({}); !all.empty()) {
      std::vector<std::string> names;
      for (const CLI::App* c : all) names.push_back(c->get_name());
      fail_usage("{} needs a command: {} (try: {} --help)", choice.name, fmt::join(names, ", "),
                 choice.name);
    }
  } catch (const CLI::Success& e) {  // --help, --version
    std::ostringstream text;
    app.exit(e, text, text);
    out_text(text.str());
  } catch (const CLI::ParseError& e) {
    return complain(kUsage, fmt::format("{} (try: {} --help)", e.what(), chosen(app).name));
  }
  flush_output();
  return 0;
}

int guarded(int argc, char** argv) {
  try {
    return dispatch(argc, argv);
  } catch (const OutputClosed&) {
    return 0;
  } catch (const UsageError& e) {
    return complain(kUsage, e.what());
  } catch (const Error& e) {
    return complain(kFailed, e.what());
  } catch (const std::bad_alloc&) {
    return complain(kFailed,
                    "out of memory: use a smaller --context or model, or free some memory");
  } catch (const std::exception& e) {
    return complain(kFailed, e.what());
  }
}

}  // namespace
}  // namespace nibble::cli

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is seen where it is written to
  return nibble::cli::guarded(argc, argv);
}
