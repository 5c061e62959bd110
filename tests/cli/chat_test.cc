// Conversations: from a pipe, and on a terminal with keys and Ctrl-C.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>

#include "command.h"

namespace nibble::cli_test {
namespace {

using testing::HasSubstr;

std::string answers(const std::string& lines, const std::vector<std::string>& more = {}) {
  std::vector<std::string> words{"chat", tiny_model(), "--temp", "0", "-n", "12"};
  words.insert(words.end(), more.begin(), more.end());
  const Outcome o = nibble(words, lines);
  EXPECT_EQ(o.code, 0) << o.err;
  return o.out;
}

TEST(Chat, EachLineOfAPipeIsATurn) {
  const std::string first = answers("hello\n"), both = answers("hello\nagain\n");
  EXPECT_GT(first.size(), 1u);
  EXPECT_EQ(both.substr(0, first.size()), first);
  EXPECT_GT(both.size(), first.size());
  EXPECT_EQ(answers("hello"), first);         // no newline at the end of input
  EXPECT_EQ(answers("\n \nhello\n"), first);  // empty lines are no turns
}

TEST(Chat, RemembersUntilReset) {
  const std::string first = answers("hello\n"),
                    second = answers("hello\nhello\n").substr(first.size());
  EXPECT_NE(second, first);  // it has seen the first turn
  EXPECT_EQ(answers("hello\n/reset\nhello\n"), first + first);
  EXPECT_EQ(answers("hello\n/exit\nhello\n"), first);
  EXPECT_NE(answers("hello\n", {"--system", "Be brief."}), first);
}

TEST(Chat, ATurnGivesWhatAFreshRunOfTheSameHistoryGives) {
  // The second turn reuses the first one's cache; with a slot of its own it computes everything.
  std::string question(150, 'q');
  const std::string first = answers(question + "\n");
  const std::string both = answers(question + "\nmore\n");
  const std::string reset = answers("other\n/reset\n" + question + "\nmore\n");
  EXPECT_TRUE(reset.ends_with(both));
  EXPECT_TRUE(both.starts_with(first));
}

TEST(Chat, AConversationLongerThanTheContextIsAnError) {
  const Outcome o = nibble({"chat", tiny_model(), "-n", "4", "--context", "64"},
                           "hi\n" + std::string(100, 'x') + "\n");
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.err, HasSubstr("--context"));
}

// `nibble chat` on a terminal.
class Terminal {
 public:
  explicit Terminal(const std::vector<std::string>& arguments) {
    std::vector<std::string> words{NIBBLE_COMMAND};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    child_ = ::forkpty(&fd_, nullptr, nullptr, nullptr);
    if (child_ == 0) {
      ::setenv("TERM", "vt100", 1);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
  }
  ~Terminal() {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
    ::close(fd_);
  }
  void type(const std::string& keys) {
    EXPECT_EQ(::write(fd_, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }
  // Reads until `text` has come since the last call that found one.
  bool sees(const std::string& text) {
    using namespace std::chrono;
    for (const auto end = steady_clock::now() + seconds(60); steady_clock::now() < end;) {
      if (const std::size_t at = screen_.find(text, seen_); at != std::string::npos) {
        seen_ = at + text.size();
        return true;
      }
      pollfd p{fd_, POLLIN, 0};
      char block[4096];
      if (::poll(&p, 1, 100) <= 0) continue;
      const ssize_t n = ::read(fd_, block, sizeof block);
      if (n <= 0) return false;
      screen_.append(block, static_cast<std::size_t>(n));
    }
    return false;
  }
  int wait() {  // its exit code
    sees("\001 never \001");
    int status = 0;
    ::waitpid(std::exchange(child_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  const std::string& screen() const { return screen_; }

 private:
  pid_t child_ = -1;
  int fd_ = -1;
  std::string screen_;
  std::size_t seen_ = 0;
};

TEST(Chat, CtrlCEndsTheAnswerAndNotTheProgram) {
  // Nothing ends the turn, so the answer is as long as the context allows.
  Terminal t(
      {"chat", tiny_model(), "--temp", "3", "--top-k", "0", "--top-p", "1", "--threads", "1"});
  ASSERT_TRUE(t.sees("> ")) << t.screen();
  const auto stopped = [&] { return t.screen().find("(stopped)") != std::string::npos; };
  for (int attempt = 0; attempt < 20 && !stopped(); ++attempt) {  // an answer may be too quick
    t.type("/reset\r");
    ASSERT_TRUE(t.sees("> ")) << t.screen();
    t.type("go\r");
    ASSERT_TRUE(t.sees("\n")) << t.screen();
    ::usleep(1000u * static_cast<unsigned>(attempt));  // sooner or later inside the answer
    t.type("\x03");
    ASSERT_TRUE(t.sees("\n> ")) << t.screen();
  }
  EXPECT_TRUE(stopped()) << t.screen();
  t.type("half a line\x03");
  ASSERT_TRUE(t.sees("^C")) << t.screen();
  ASSERT_TRUE(t.sees("> ")) << t.screen();
  t.type("\x04");
  EXPECT_EQ(t.wait(), 0) << t.screen();
}

}  // namespace
}  // namespace nibble::cli_test
