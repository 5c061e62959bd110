// nibble chat: a conversation in the terminal, or with a pipe, one line a turn.
#include <csignal>

#include "answering.h"
#include "base/error.h"
#include "commands.h"
#include "common.h"
#include "console.h"
#include "line_reader.h"

namespace nibble::cli {
namespace {

struct Options {
  ModelFlags model;
  SamplingFlags sampling;
  PromptFlags prompt;
};

volatile std::sig_atomic_t g_interrupted = 0;

// While it lives Ctrl-C sets g_interrupted instead of ending the program.
class CatchInterrupt {
 public:
  CatchInterrupt() {
    struct sigaction action {};
    action.sa_handler = [](int) { g_interrupted = 1; };
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGINT, &action, &before_);
  }
  ~CatchInterrupt() { ::sigaction(SIGINT, &before_, nullptr); }
  CatchInterrupt(const CatchInterrupt&) = delete;
  CatchInterrupt& operator=(const CatchInterrupt&) = delete;

 private:
  struct sigaction before_ {};
};

class Chat {
 public:
  explicit Chat(const Options& o)
      : checkpoint_(open_model(o.model)),
        request_(request_for(o.sampling, checkpoint_->generation())),
        tokenizer_(load_tokenizer(*checkpoint_, o.model)),
        format_(format_of(o)),
        engine_(load_engine(*checkpoint_, o.model)),
        stepper_(*engine_),
        scheduler_(stepper_, tokenizer_),
        system_(o.prompt.system) {
    reset();
  }

  void reset() {
    messages_ = nlohmann::ordered_json::array();
    if (!system_.empty()) messages_.push_back(message("system", system_));
  }

  // One turn. A turn that fails or is stopped before its first word leaves no trace.
  void say(const std::string& text) {
    const CatchInterrupt guard;
    const nlohmann::ordered_json before = messages_;
    messages_.push_back(message("user", text));
    try {
      Request request = request_;
      request.prompt = format_.encode(messages_);
      const Completion c = answer(
          scheduler_, std::move(request),
          [](std::string_view piece) {
            out_text(piece);
            flush_output();
          },
          [] { return g_interrupted != 0; });
      out_text("\n");
      flush_output();
      if (c.finish == Finish::Cancelled) note("(stopped)");
      if (c.finish == Finish::Length)
        note("(cut: -n or the context is used up; /reset starts anew)");
      if (c.text.empty() && c.finish == Finish::Cancelled)
        messages_ = before;
      else
        messages_.push_back(message("assistant", c.text));
    } catch (const Error&) {
      messages_ = before;
      throw;
    }
  }

 private:
  ChatFormat format_of(const Options& o) const {
    auto format = ChatFormat::of(*checkpoint_, tokenizer_, o.prompt);
    require(format.has_value(),
            "{}: no chat template, so no conversation; `nibble run --raw` "
            "continues a text",
            o.model.path);
    return std::move(*format);
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  Request request_;  // all but the prompt
  Tokenizer tokenizer_;
  ChatFormat format_;
  std::unique_ptr<Engine> engine_;
  EngineStepper stepper_;
  Scheduler scheduler_;
  std::string system_;
  nlohmann::ordered_json messages_;
};

void chat(const Options& o) {
  Chat session(o);
  LineReader reader("> ");
  if (reader.interactive())
    note("Ctrl-C ends an answer, /reset forgets the conversation, /exit or Ctrl-D leaves");
  // On a terminal at every moment: a Ctrl-C between two answers must not end the program either.
  std::optional<CatchInterrupt> guard;
  if (reader.interactive()) guard.emplace();
  for (;;) {
    g_interrupted = 0;
    const auto line = reader.read();
    if (!line) break;
    if (line->find_first_not_of(" \t\r") == std::string::npos) continue;
    if (*line == "/exit") break;
    if (*line == "/reset") {
      session.reset();
      continue;
    }
    try {
      session.say(*line);
    } catch (const Error& e) {
      if (!reader.interactive()) throw;
      note(fmt::format("error: {} (/reset starts a new conversation)", e.what()));
    }
  }
}

}  // namespace

void add_chat(CLI::App& app) {
  auto* cmd = app.add_subcommand("chat", "Hold a conversation");
  const auto o = std::make_shared<Options>();
  add_model(*cmd, o->model);
  add_prompt_flags(*cmd, o->prompt);
  add_sampling(*cmd, o->sampling);
  add_device(*cmd, o->model);
  add_threads(*cmd, o->model.threads);
  add_context(*cmd, o->model.context);
  cmd->footer(
      "Ctrl-C ends an answer and not the program; Ctrl-D or /exit leaves; /reset forgets the "
      "conversation.\nWhat the turns have in common is computed once. From a pipe, every line is "
      "a turn.\n\n"
      "  nibble chat model.gguf --system 'You are terse.'\n"
      "  printf 'My name is Ada.\\nWhat is my name?\\n' | nibble chat model.gguf --temp 0");
  cmd->callback([o] { chat(*o); });
}

}  // namespace nibble::cli
