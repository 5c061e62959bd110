// Lines from the user: edited with a history on a terminal, plain from a pipe.
#pragma once
#include <memory>
#include <optional>
#include <string>

namespace nibble::cli {

class LineReader {
 public:
  explicit LineReader(const char* prompt);  // a literal: kept as a pointer
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  bool interactive() const { return editor_ != nullptr; }
  // The next line without its end; nullopt at the end of input (Ctrl-D). Ctrl-C drops the line
  // being typed and asks again.
  std::optional<std::string> read();

 private:
  struct Editor;
  std::unique_ptr<Editor> editor_;  // null: standard input is no terminal
};

}  // namespace nibble::cli
