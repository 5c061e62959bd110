// nibble run: one prompt, one answer, streamed.
#include "answering.h"
#include "base/error.h"
#include "commands.h"
#include "common.h"
#include "console.h"

namespace nibble::cli {
namespace {

struct Options {
  ModelFlags model;
  SamplingFlags sampling;
  PromptFlags prompt;
  std::optional<std::string> text, file;
  bool json = false;
};

std::vector<std::int32_t> encode_prompt(const Options& o, const std::string& text,
                                        const Checkpoint& checkpoint, const Tokenizer& tokenizer) {
  if (!o.prompt.raw) {
    if (const auto format = ChatFormat::of(checkpoint, tokenizer, o.prompt)) {
      auto messages = nlohmann::ordered_json::array();
      if (!o.prompt.system.empty()) messages.push_back(message("system", o.prompt.system));
      messages.push_back(message("user", text));
      return format->encode(messages);
    }
    note("this model has no chat template: the prompt is taken as it is (--raw)");
  }
  return tokenizer.encode(text, true, true);
}

void run(const Options& o) {
  if (o.text.has_value() == o.file.has_value())
    fail_usage("give the prompt with -p TEXT (- for standard input) or with -f FILE");
  if (o.prompt.raw && !(o.prompt.system.empty() && o.prompt.think.empty()))
    fail_usage("--system and --think need the chat template: leave --raw out");
  const std::string text = o.file ? read_text(*o.file) : *o.text == "-" ? read_text("-") : *o.text;
  const auto checkpoint = open_model(o.model);
  Request request = request_for(o.sampling, checkpoint->generation());
  const Tokenizer tokenizer = load_tokenizer(*checkpoint, o.model);
  request.prompt = encode_prompt(o, text, *checkpoint, tokenizer);

  auto engine = load_engine(*checkpoint, o.model);
  const auto print_now = [](std::string_view piece) {
    out_text(piece);
    flush_output();
  };
  const Completion c = [&] {
    EngineStepper stepper(*engine);
    Scheduler scheduler(stepper, tokenizer);
    return answer(scheduler, std::move(request),
                  o.json ? std::function<void(std::string_view)>() : print_now, {});
  }();
  if (!o.json && !c.text.ends_with('\n')) print_now("\n");

  const EngineMemory memory = engine->memory();
  const int threads = engine->threads();
  engine.reset();  // the bandwidth buffer takes the weights' place in memory
  const Bandwidth read = measure_bandwidth(threads, 0.2);
  if (!o.json) return note(describe_speed(c, memory, read));
  const double bytes = bytes_per_token(c, memory);
  out_json({{"text", c.text},
            {"tokens", c.tokens},
            {"finish_reason", finish_name(c.finish)},
            {"prompt_tokens", c.prompt_tokens},
            {"prompt_tokens_per_second", c.prompt_rate()},
            {"tokens_per_second", c.decode_rate()},
            {"bytes_per_token", bytes},
            {"gb_per_second", bytes * c.decode_rate() / 1e9},
            {"bandwidth_fraction", bytes * c.decode_rate() / read.median},
            {"seed", o.sampling.seed},
            {"activations", o.model.activations},
            {"device", o.model.device},
            {"threads", threads}});
}

}  // namespace

void add_run(CLI::App& app) {
  auto* cmd = app.add_subcommand("run", "Answer a prompt");
  const auto o = std::make_shared<Options>();
  add_model(*cmd, o->model);
  cmd->add_option("-p,--prompt", o->text, "The prompt; - reads standard input");
  cmd->add_option("-f,--file", o->file, "A text file with the prompt");
  add_prompt_flags(*cmd, o->prompt);
  cmd->add_flag("--raw", o->prompt.raw,
                "No chat template: the model continues the text. Special tokens in it count");
  add_sampling(*cmd, o->sampling);
  add_device(*cmd, o->model);
  add_threads(*cmd, o->model.threads);
  add_context(*cmd, o->model.context);
  cmd->add_flag("--json", o->json,
                "Print one JSON object with text, token ids and speed at the end");
  cmd->footer(
      "The answer streams to standard output; its speed follows on standard error: GB/s is what "
      "decoding\nread, beside what this machine can read, measured right after.\n\n"
      "  nibble run model.gguf -p 'Why is the sky blue?'\n"
      "  nibble run model.gguf -p 'Name a colour.' --temp 0 -n 16 --json\n"
      "  nibble run model.gguf --raw -p 'Once upon a time' --seed 7 --stop 'The end'\n"
      "  git diff | nibble run model.gguf --system 'Summarise this change.' -p -");
  cmd->callback([o] { run(*o); });
}

}  // namespace nibble::cli
