// The subcommands of `nibble`: each file cmd_NAME.cc defines one of these, which declares its
// options and what runs when it is chosen.
#pragma once
#include <CLI/CLI.hpp>

namespace nibble::cli {

void add_run(CLI::App& app);
void add_chat(CLI::App& app);
void add_quantize(CLI::App& app);
void add_logits(CLI::App& app);
void add_perplexity(CLI::App& app);
void add_inspect(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_template(CLI::App& app);
void add_bench(CLI::App& app);
void add_verify(CLI::App& app);
void add_bench_fused(CLI::App& bench);  // a command of `bench`

}  // namespace nibble::cli
