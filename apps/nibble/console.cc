#include "console.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "base/file.h"

namespace nibble::cli {
namespace {

[[noreturn]] void output_failed() {
  if (errno == EPIPE) throw OutputClosed{};
  fail("cannot write to standard output: {}", std::strerror(errno));
}

}  // namespace

void out_text(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) output_failed();
}

void flush_output() {
  if (std::fflush(stdout) != 0) output_failed();
}

void out_json(const nlohmann::ordered_json& value) {
  out_text(value.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + '\n');
}

void note(std::string_view text) {
  std::fprintf(stderr, "nibble: %.*s\n", static_cast<int>(text.size()), text.data());
}

std::string read_text(const std::string& path) {
  if (path != "-") return read_file(path);
  constexpr std::size_t kMax = 256u << 20;
  std::string text;
  char block[1 << 16];
  while (const std::size_t n = std::fread(block, 1, sizeof block, stdin)) {
    text.append(block, n);
    require(text.size() <= kMax, "standard input: more than {} MB", kMax >> 20);
  }
  require(std::ferror(stdin) == 0, "standard input: cannot read: {}", std::strerror(errno));
  return text;
}

std::vector<std::int32_t> parse_ids(std::string_view text) {
  constexpr std::string_view kSeparators = ", \t\r\n";
  std::vector<std::int32_t> ids;
  for (std::size_t at = text.find_first_not_of(kSeparators); at != std::string_view::npos;) {
    const std::size_t end = std::min(text.find_first_of(kSeparators, at), text.size());
    const std::string_view word = text.substr(at, end - at);
    std::int32_t id = 0;
    const auto parsed = std::from_chars(word.data(), word.data() + word.size(), id);
    if (parsed.ec != std::errc{} || parsed.ptr != word.data() + word.size() || id < 0)
      fail_usage("'{}' is not a token id: write whole numbers with commas between them",
                 printable(word.substr(0, 32)));
    ids.push_back(id);
    at = text.find_first_not_of(kSeparators, end);
  }
  return ids;
}

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else if (c == '\\')
      out += "\\\\";
    else if (byte < 0x20 || byte == 0x7f)
      out += fmt::format("\\x{:02x}", byte);
    else
      out += c;
  }
  return out;
}

std::string human_bytes(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  double x = static_cast<double>(bytes);
  int unit = 0;
  for (; x >= 1000 && unit < 4; ++unit) x /= 1000;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", x, kUnits[unit]);
}

Progress::Progress(std::string label)
    : label_(std::move(label)),
      next_(Clock::now() + std::chrono::milliseconds(500)),
      terminal_(::isatty(STDERR_FILENO) == 1) {}

void Progress::show(double fraction, std::string_view detail) {
  const auto now = Clock::now();
  if (!terminal_ || now < next_) return;
  next_ = now + std::chrono::milliseconds(100);
  shown_ = true;
  fmt::print(stderr, "\r\033[K{} {:.0f} % {}", label_, 100 * fraction, detail);
  std::fflush(stderr);
}

Progress::~Progress() {
  if (shown_) std::fputs("\r\033[K", stderr);
}

}  // namespace nibble::cli
