// One rendering of a template: its bounds, what it has used of them, and the line it is at.
//
// A template comes with a model file, so it is input like any other. Every evaluated node, every
// byte copied and every byte kept alive is counted here; past a bound the rendering ends with an
// Error that names the line, never with a hang or a huge allocation.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace nibble::jinja {

struct Limits {
  std::uint64_t steps = 20'000'000;    // nodes evaluated, and text handled (work, read)
  std::size_t memory = 256u << 20;     // bytes alive in values and output (temporaries: as much)
  int depth = 500;                     // nested statements, expressions and macro calls
  static constexpr int nesting = 100;  // lists in lists, dicts in dicts
  static constexpr std::int64_t range = 100'000;  // longest range(), as Jinja's sandbox has it
};

template <class... A>
[[noreturn]] void fail_at(int line, fmt::format_string<A...> f, A&&... a) {
  throw Error(
      fmt::format("chat template, line {}: {}", line, fmt::format(f, std::forward<A>(a)...)));
}

class Run {
 public:
  explicit Run(const Limits& limits) : limits_(limits) {}
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  int line = 1;  // of what is being evaluated

  template <class... A>
  [[noreturn]] void fail(fmt::format_string<A...> f, A&&... a) const {
    fail_at(line, f, std::forward<A>(a)...);
  }
  void step(std::uint64_t n = 1) {
    steps_ += n;
    if (steps_ > limits_.steps) fail("stopped after {} steps; it loops too long", limits_.steps);
  }
  void work(std::size_t bytes) { step(bytes / 64); }  // copied or compared
  void read(std::size_t bytes) { step(bytes / 16); }  // looked at character by character
  // Fails unless `count` more elements of `size` bytes fit.
  void room(std::size_t count, std::size_t size = 1) const {
    if (count > (limits_.memory - held_) / size) {
      fail("needs more than the {} MB of memory a template may use", limits_.memory >> 20);
    }
  }
  void hold(std::size_t bytes) {
    room(bytes);
    held_ += bytes;
  }
  void drop(std::size_t bytes) noexcept { held_ -= bytes; }
  // Appends to a text under construction, which is not held yet.
  void append(std::string& out, std::string_view piece) {
    work(piece.size());
    room(out.size() + piece.size());
    out += piece;
  }

  class Nest {  // one level of nested evaluation
   public:
    explicit Nest(Run& run) : run_(run) {
      if (++run_.depth_ > run_.limits_.depth) {
        --run_.depth_;
        run_.fail("nested too deeply ({} levels); does a macro call itself without end?",
                  run_.limits_.depth);
      }
    }
    ~Nest() { --run_.depth_; }
    Nest(const Nest&) = delete;
    Nest& operator=(const Nest&) = delete;

   private:
    Run& run_;
  };

 private:
  Limits limits_;
  std::uint64_t steps_ = 0;
  std::size_t held_ = 0;
  int depth_ = 0;
};

// Bytes counted against a run for as long as this lives.
class Held {
 public:
  Held() = default;
  Held(Run& run, std::size_t bytes) : run_(&run), bytes_(bytes) { run.hold(bytes); }
  ~Held() {
    if (run_ != nullptr) run_->drop(bytes_);
  }
  Held(Held&& o) noexcept : run_(std::exchange(o.run_, nullptr)), bytes_(o.bytes_) {}
  Held& operator=(Held&&) = delete;
  void more(std::size_t bytes) {
    run_->hold(bytes);
    bytes_ += bytes;
  }

 private:
  Run* run_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace nibble::jinja
