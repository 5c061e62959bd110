// Errors: every failure a user can meet is thrown as one of these, names the thing and the remedy.
// The command maps them to exit codes: Error 1, UsageError 2.
#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace nibble {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller asked for something impossible (bad flag, bad argument).
class UsageError : public Error {
 public:
  using Error::Error;
};

template <class... A>
[[noreturn]] void fail(fmt::format_string<A...> f, A&&... a) {
  throw Error(fmt::format(f, std::forward<A>(a)...));
}

template <class... A>
[[noreturn]] void fail_usage(fmt::format_string<A...> f, A&&... a) {
  throw UsageError(fmt::format(f, std::forward<A>(a)...));
}

// Throws Error unless `ok`. The message is formatted only on failure.
template <class... A>
void require(bool ok, fmt::format_string<A...> f, A&&... a) {
  if (!ok) fail(f, std::forward<A>(a)...);
}

}  // namespace nibble
