// The command's input and output: results on stdout, everything else on stderr.
#pragma once
#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble::cli {

// Whoever read our stdout has gone: the command ends quietly.
struct OutputClosed {};

// Writes to stdout. Throws OutputClosed, or Error when the text cannot be written (disk full).
void out_text(std::string_view text);
void flush_output();
template <class... A>
void out(fmt::format_string<A...> f, A&&... a) {
  out_text(fmt::format(f, std::forward<A>(a)...));
}
// One JSON document and a newline; invalid UTF-8 in strings becomes U+FFFD.
void out_json(const nlohmann::ordered_json& value);

// A line on stderr: "nibble: TEXT".
void note(std::string_view text);

// The whole of a text file, or of stdin for "-". Throws Error naming it.
std::string read_text(const std::string& path);

// "1,2,3", separators commas or white space. Throws UsageError naming what is no token id.
std::vector<std::int32_t> parse_ids(std::string_view text);

// Control characters and backslashes as \n, \t, \xNN: for names and pieces of text on a terminal.
std::string printable(std::string_view text);

std::string human_bytes(std::uint64_t bytes);  // "93.8 MB", powers of 1000

// A line on stderr that shows how far a long task is: only on a terminal, and only once the task
// has run for half a second; gone when the object is.
class Progress {
 public:
  explicit Progress(std::string label);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void show(double fraction, std::string_view detail = {});

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  Clock::time_point next_;
  bool terminal_, shown_ = false;
};

}  // namespace nibble::cli
