#include "line_reader.h"

#include <histedit.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <iostream>

#include "base/error.h"

namespace nibble::cli {

struct LineReader::Editor {
  EditLine* line = nullptr;
  History* history = nullptr;
  const char* prompt = nullptr;
  bool dropped = false;

  static Editor& of(EditLine* e) {
    Editor* self = nullptr;
    el_get(e, EL_CLIENTDATA, &self);
    return *self;
  }
  static const char* show_prompt(EditLine* e) { return of(e).prompt; }
  static unsigned char drop_line(EditLine* e, wint_t) {
    of(e).dropped = true;
    return CC_EOF;
  }

  explicit Editor(const char* text) : prompt(text) {
    std::setlocale(LC_CTYPE, "");  // so that a character of several bytes is one
    line = el_init("nibble", stdin, stderr, stderr);
    history = history_init();
    require(line != nullptr && history != nullptr, "cannot start line editing on this terminal");
    HistEvent event;
    ::history(history, &event, H_SETSIZE, 1000);
    el_set(line, EL_CLIENTDATA, this);
    el_set(line, EL_PROMPT, &show_prompt);
    el_set(line, EL_EDITOR, "emacs");
    el_set(line, EL_HIST, ::history, history);
    el_set(line, EL_SIGNAL, 1);  // gives the terminal back when the process is ended
    // Ctrl-C while editing is a key, so that it drops the line and not the program.
    el_set(line, EL_SETTY, "-d", "-isig", nullptr);
    // The wide form: el_set() would copy both strings and never free them.
    el_wset(line, EL_ADDFN, L"drop-line", L"Drop the line", &drop_line);
    el_set(line, EL_BIND, "^C", "drop-line", nullptr);
  }
  ~Editor() {
    if (history != nullptr) history_end(history);
    if (line != nullptr) el_end(line);
  }

  std::optional<std::string> read() {
    for (;;) {
      dropped = false;
      int count = 0;
      // Before the prompt shows, so that no key is taken as a signal.
      el_set(line, EL_PREP_TERM, 1);
      const char* text = el_gets(line, &count);
      if (dropped) {
        std::fputs("^C\n", stderr);
        el_reset(line);
        continue;
      }
      if (text == nullptr || count <= 0) return std::nullopt;
      std::string result(text, static_cast<std::size_t>(count));
      if (result.ends_with('\n')) result.pop_back();
      HistEvent event;
      if (!result.empty()) ::history(history, &event, H_ENTER, result.c_str());
      return result;
    }
  }
};

LineReader::LineReader(const char* prompt)
    : editor_(::isatty(STDIN_FILENO) == 1 ? std::make_unique<Editor>(prompt) : nullptr) {}

LineReader::~LineReader() = default;

std::optional<std::string> LineReader::read() {
  if (editor_) return editor_->read();
  std::string line;
  if (!std::getline(std::cin, line)) return std::nullopt;
  return line;
}

}  // namespace nibble::cli
