#include "text/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "base/error.h"
#include "text/unicode.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxSteps = 32;
constexpr std::size_t kMaxPattern = 4096;  // bytes
// A search sees this many bytes and may take this many backtracking steps (PCRE2's count). Where
// that is too little both are doubled, and charged to a budget of the text: published patterns
// need no more than the length of each run, a few times. As one step may scan all that the search
// sees, an allowance of processor time, hundreds of times the usual, catches what is left.
constexpr std::size_t kWindow = 256;
constexpr std::uint32_t kSteps = 1000;
constexpr std::uint64_t kBudget = 1 << 22, kBudgetPerByte = 64;
constexpr double kSeconds = 2, kSecondsPerByte = 5e-6;
constexpr std::uint32_t kHeapKiB = 256 << 10;

template <auto F>
struct Free {
  template <class T>
  void operator()(T* p) const {
    F(p);
  }
};
using CompileContext = std::unique_ptr<pcre2_compile_context, Free<pcre2_compile_context_free>>;
using Code = std::unique_ptr<pcre2_code, Free<pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Free<pcre2_match_context_free>>;

std::string message(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class T>
T* allocated(T* p) {
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

struct Pretokenizer::Step {
  std::string pattern;  // as the file writes it
  bool isolated;
  Code code;

  explicit Step(const TokenizerSpec::Split& split)
      : pattern(split.pattern), isolated(split.isolated) {
    require(pattern.size() <= kMaxPattern,
            "pre-tokenizer pattern of {} bytes: at most {} are "
            "supported",
            pattern.size(), kMaxPattern);
    const std::string translated = pcre2_pattern(pattern);
    const CompileContext context(allocated(pcre2_compile_context_create(nullptr)));
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    PCRE2_SIZE offset = 0;
    code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_USE_OFFSET_LIMIT,
                             &error, &offset, context.get()));
    require(code != nullptr, "pre-tokenizer pattern '{}': {} (near '{}')", pattern, message(error),
            translated.substr(std::min(offset, translated.size()), 16));
    // Without JIT (unsupported processor, no executable memory) the interpreter does the same.
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
  }
};

// One call of split(): match data of its own, and the budget of backtracking.
class Pretokenizer::Run {
 public:
  Run(const std::vector<Step>& steps, std::string_view text,
      const std::function<void(std::string_view)>& sink)
      : steps_(steps),
        sink_(sink),
        budget_(kBudget + kBudgetPerByte * text.size()),
        deadline_(thread_seconds() + kSeconds + kSecondsPerByte * static_cast<double>(text.size())),
        context_(allocated(pcre2_match_context_create(nullptr))),
        data_(allocated(pcre2_match_data_create(1, nullptr))) {
    pcre2_set_heap_limit(context_.get(), kHeapKiB);
  }

  // Applies steps k and later to `text`. Cuts at empty matches too, like the reference library,
  // except where one touches the match before.
  void apply(std::size_t k, std::string_view text) {
    if (text.empty()) return;
    if (k == steps_.size()) return sink_(text);
    std::size_t done = 0;  // what stands before has been passed on
    bool matched = false;
    for (std::size_t at = 0; at <= text.size();) {
      const auto match = find(steps_[k], text, at);
      if (!match) break;
      const auto [begin, end] = *match;
      if (begin == end && matched && end == done) {
        if (at == text.size()) break;
        at += decode_utf8(text.substr(at)).length;
        continue;
      }
      if (steps_[k].isolated) apply(k + 1, text.substr(done, begin - done));
      apply(k + 1, text.substr(begin, end - begin));
      done = at = end;
      matched = true;
    }
    if (steps_[k].isolated) apply(k + 1, text.substr(done));
  }

 private:
  struct Match {
    std::size_t begin, end;
  };

  // The first match that starts at `from` or later.
  std::optional<Match> find(const Step& step, std::string_view text, std::size_t from) {
    std::size_t window = kWindow;
    std::uint64_t steps = kSteps;
    std::size_t single = from;  // starts before this are tried one by one
    for (;;) {
      std::size_t end = text.size() - from > window ? from + window : text.size();
      while (end < text.size() && is_continuation(text[end])) ++end;
      const bool one = from < single;
      const int rc = match(step, text.substr(0, end), from, one ? from : PCRE2_UNSET, steps,
                           end < text.size());
      const PCRE2_SIZE* where = pcre2_get_ovector_pointer(data_.get());
      if (rc == PCRE2_ERROR_MATCHLIMIT && !one) {
        single = std::max(end, from + 1);
      } else if (rc == PCRE2_ERROR_MATCHLIMIT) {
        charge(step, steps);
        steps *= 2;
      } else if (rc == PCRE2_ERROR_PARTIAL && where[0] > from) {
        from = where[0];
      } else if (rc == PCRE2_ERROR_PARTIAL) {  // what is behind the window may matter
        charge(step, window);
        window *= 2;
        single = std::max(single, from + 1);
      } else if (rc >= 0 && (where[0] < end || end == text.size())) {
        return Match{where[0], where[1]};
      } else {
        require(rc >= 0 || rc == PCRE2_ERROR_NOMATCH, "pre-tokenizer pattern '{}': {}",
                step.pattern, message(rc));
        if (one ? from == text.size() : end == text.size()) return {};
        from = one ? from + decode_utf8(text.substr(from)).length : end;
        window = kWindow;
        steps = kSteps;
      }
    }
  }

  void charge(const Step& step, std::uint64_t work) {
    require(work <= budget_ && thread_seconds() <= deadline_,
            "pre-tokenizer pattern '{}' takes too long on this text; the tokenizer is unusable",
            step.pattern);
    budget_ -= work;
  }

  static bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

  int match(const Step& step, std::string_view text, std::size_t from, std::size_t last_start,
            std::uint64_t steps, bool partial) {
    pcre2_set_match_limit(context_.get(),
                          static_cast<std::uint32_t>(std::min<std::uint64_t>(steps, UINT32_MAX)));
    pcre2_set_offset_limit(context_.get(), last_start);
    const auto run = [&](std::uint32_t options) {
      return pcre2_match(step.code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                         from, PCRE2_NO_UTF_CHECK | options, data_.get(), context_.get());
    };
    const std::uint32_t options = partial ? PCRE2_PARTIAL_HARD : 0;
    const int rc = run(options);
    // The interpreter keeps its backtracking points on the heap instead.
    return rc == PCRE2_ERROR_JIT_STACKLIMIT ? run(options | PCRE2_NO_JIT) : rc;
  }

  const std::vector<Step>& steps_;
  const std::function<void(std::string_view)>& sink_;
  std::uint64_t budget_;
  double deadline_;  // in processor time of this thread
  MatchContext context_;
  MatchData data_;
};

Pretokenizer::Pretokenizer(std::span<const TokenizerSpec::Split> splits) {
  require(splits.size() <= kMaxSteps, "{} pre-tokenizer steps: at most {} are supported",
          splits.size(), kMaxSteps);
  for (const auto& split : splits) steps_.emplace_back(split);
}
Pretokenizer::~Pretokenizer() = default;
Pretokenizer::Pretokenizer(Pretokenizer&&) noexcept = default;

void Pretokenizer::split(std::string_view text,
                         const std::function<void(std::string_view)>& sink) const {
  Run(steps_, text, sink).apply(0, text);
}

}  // namespace nibble
