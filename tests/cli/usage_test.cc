// Help, versions, and everything that goes wrong: exit codes and where the words go.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/file.h"
#include "command.h"

namespace nibble::cli_test {
namespace {

using testing::HasSubstr;
using testing::StartsWith;
using Words = std::vector<std::string>;

void expect_error(int code, const Words& arguments, const std::string& says,
                  const std::string& in = {}) {
  const Outcome o = nibble(arguments, in);
  const std::string line = testing::PrintToString(arguments);
  EXPECT_EQ(o.code, code) << line << o.err;
  EXPECT_EQ(o.out, "") << line;
  EXPECT_THAT(o.err, StartsWith("nibble: error: ")) << line;
  EXPECT_THAT(o.err, HasSubstr(says)) << line;
  EXPECT_THAT(o.err, testing::EndsWith("\n"));
}

TEST(Usage, EveryCommandTeaches) {
  for (const char* command :
       {"run", "chat", "quantize", "logits", "perplexity", "inspect", "tokenize", "template",
        "bench model", "bench fused", "bench bandwidth", "verify"}) {
    Words words;
    std::istringstream split(command);
    for (std::string w; split >> w;) words.push_back(w);
    words.push_back("--help");
    const Outcome o = nibble(words);
    EXPECT_EQ(o.code, 0) << command;
    EXPECT_EQ(o.err, "") << command;
    EXPECT_THAT(o.out, HasSubstr(std::string("Usage: nibble ") + command)) << command;
    EXPECT_THAT(o.out, HasSubstr(std::string("  nibble ") + command + " ")) << "an example";
  }
  for (const char* command : {"run", "chat", "logits", "perplexity", "bench model"}) {
    Words words;
    std::istringstream split(command);
    for (std::string w; split >> w;) words.push_back(w);
    words.push_back("--help");
    EXPECT_THAT(nibble(words).out, HasSubstr("--activations")) << command;
  }
  EXPECT_EQ(nibble({"--help"}).code, 0);
  EXPECT_EQ(nibble({"bench", "--help"}).code, 0);
}

TEST(Usage, VersionNamesWhatItIsMadeOf) {
  const Outcome o = nibble({"--version"});
  EXPECT_EQ(o.code, 0);
  EXPECT_THAT(o.out, StartsWith("nibble "));
  for (const char* line : {"\ncompiler ", "\nbuild ", "\ncpu ", "\nbackends cpu"})
    EXPECT_THAT(o.out, HasSubstr(line));
}

TEST(Usage, NoGpuIsAClearError) {
  const Outcome o = nibble({"run", tiny_model(), "-p", "a", "-n", "1", "--device", "cuda"});
  if (o.code == 0) GTEST_SKIP() << "there is a GPU";
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.err, HasSubstr("--device cpu"));
}

TEST(Usage, WhatIsImpossibleIsTwo) {
  const std::string& m = tiny_model();
  expect_error(2, {}, "run, chat, ");
  expect_error(2, {"frobnicate"}, "frobnicate");
  expect_error(2, {"bench"}, "nibble bench needs a command: model, fused, bandwidth");
  expect_error(2, {"run"}, "MODEL");
  expect_error(2, {"run", m, "--frob"}, "nibble run --help");
  expect_error(2, {"run", m}, "-p TEXT");
  expect_error(2, {"run", m, "-p", "a", "-f", "b"}, "-f FILE");
  expect_error(2, {"run", m, "-p", "a", "--activations", "int4"}, "int16");
  expect_error(2, {"run", m, "-p", "a", "--device", "tpu"}, "cpu");
  expect_error(2, {"run", m, "-p", "a", "--device", "cpu:mmx"}, "cpu:scalar");
  expect_error(2, {"run", m, "-p", "a", "--threads", "-1"}, "--threads");
  expect_error(2, {"run", m, "-p", "a", "--threads", "x"}, "--threads");
  expect_error(2, {"run", m, "-p", "a", "-n", "-3"}, "--max-tokens");
  expect_error(2, {"run", m, "-p", "a", "--seed", "-1"}, "--seed");
  expect_error(2, {"run", m, "-p", "a", "--seed", "18446744073709551616"}, "--seed");
  expect_error(2, {"run", m, "-p", "a", "--context", "9223372036854775807"}, "context");
  expect_error(2, {"run", m, "-p", "a", "--temp", "-1"}, "temperature");
  expect_error(2, {"run", m, "-p", "a", "--temp", "nan"}, "temperature");
  expect_error(2, {"run", m, "-p", "a", "--top-p", "2"}, "top_p");
  expect_error(2, {"run", m, "-p", "a", "--min-p", "-1"}, "min_p");
  expect_error(2, {"run", m, "-p", "a", "--top-k", "-1"}, "top_k");
  expect_error(2, {"run", m, "-p", "a", "--repeat-penalty", "0"}, "repetition");
  expect_error(2, {"run", m, "-p", "a", "--stop", ""}, "stop string");
  expect_error(2, {"run", m, "-p", "a", "--raw", "--system", "x"}, "--raw");
  expect_error(2, {"run", m, "-p", "a", "--think", "maybe"}, "--think");
  expect_error(2, {"logits", m, "--tokens", "1"}, "--out");
  expect_error(2, {"logits", m, "--out", "x.npy"}, "--tokens");
  expect_error(2, {"logits", m, "--tokens", "1,x", "--out", "x.npy"}, "'x'");
  expect_error(2, {"logits", m, "--tokens", "1,-2", "--out", "x.npy"}, "'-2'");
  expect_error(2, {"logits", m, "--tokens", "99999999999", "--out", "x.npy"}, "99999999999");
  expect_error(2, {"logits", m, "--tokens", "", "--out", "x.npy"}, "no token");
  expect_error(2, {"perplexity", m}, "--text");
  expect_error(2, {"perplexity", m, "--text", "x", "--window", "3"}, "--window");
  expect_error(2, {"tokenize", m}, "--text");
  expect_error(2, {"tokenize", m, "--text", "a", "--decode", "1"}, "--text");
  expect_error(2, {"bench", "model", m, "--prompt", "0", "--generate", "0"}, "--prompt");
  expect_error(2, {"bench", "model", m, "--format", "yaml"}, "--format");
  expect_error(2, {"bench", "model", m, "--repeat", "0"}, "--repeat");
  expect_error(2, {"bench", "model"}, "MODEL");
  expect_error(2, {"bench", "fused", "--shape", "8704"}, "expected NxK");
  expect_error(2, {"bench", "fused", "--rows", "9"}, "--rows");
  expect_error(2, {"bench", "model", m, "--config", "qwen3.5-0.8b"}, "MODEL");
  expect_error(2, {"bench", "model", m, "--layers", "2"}, "--config");
  expect_error(2, {"bench", "model", "--config", "qwen3.5-0.8b"}, "--random-weights");
  expect_error(2, {"bench", "model", "--config", "gpt-2", "--random-weights"}, "qwen3.6-27b");
  expect_error(2,
               {"bench", "model", "--config", "qwen3.5-0.8b", "--random-weights", "--layers", "25"},
               "--layers");
  expect_error(2, {"verify", "--device", "tpu"}, "cpu");
  expect_error(2, {"verify", "--activations", "int4"}, "int16");
  for (const char* shape : {"8704", "8704x", "x5120", "8704x5120x2", "8704x5121", "0x128", "ax128"})
    expect_error(2, {"verify", "--shape", shape}, shape);
  expect_error(2, {"verify", "--quick", "--shape", "1x128"}, "--shape");
  expect_error(2, {"verify", "--stress", "10"}, "--shape 256x2048");
  expect_error(2, {"verify", "--threads", "2"}, "--stress");
  expect_error(2, {"verify", "--explain", "--quick"}, "--explain");
}

TEST(Usage, WhatFailsIsOneAndNamesIt) {
  const std::string& m = tiny_model();
  const Scratch dir;
  for (const Words& w : {Words{"run", "-p", "a"},
                         {"chat"},
                         {"inspect"},
                         {"tokenize", "--text", "a"},
                         {"bench", "model"},
                         {"logits", "--tokens", "1", "--out", dir / "x"}}) {
    Words words = w;
    words.push_back(dir / "nothing");
    expect_error(1, words, "nothing");
  }
  expect_error(1, {"run", m, "-f", dir / "missing.txt"}, "missing.txt");
  expect_error(1, {"run", m, "-f", dir / ""}, "regular file");
  expect_error(1, {"perplexity", m, "--text", dir / "missing.txt"}, "missing.txt");
  expect_error(1, {"perplexity", m, "--text", "-"}, "window", "short");
  expect_error(1, {"run", m, "-p", std::string(100, 'x'), "--context", "64"}, "--context");
  expect_error(1, {"run", m, "--raw", "-p", ""}, "empty");
  expect_error(1, {"logits", m, "--tokens", "1,5000", "--out", dir / "x.npy"}, "5000");
  expect_error(1, {"logits", m, "--tokens", "1", "--out", dir / "no/such/x.npy"}, "x.npy");
  expect_error(1, {"tokenize", m, "--decode", "263"}, "263");
}

TEST(Usage, ATruncatedModelIsOne) {
  const Scratch dir;
  const std::string whole = read_file(tiny_model() + "/model.safetensors");
  for (const std::size_t n :
       {std::size_t{0}, std::size_t{7}, std::size_t{200}, whole.size() / 2, whole.size() - 1}) {
    const std::string m = dir / ("cut" + std::to_string(n));
    write_tiny_model(m);
    std::filesystem::resize_file(m + "/model.safetensors", n);
    expect_error(1, {"run", m, "-p", "a"}, "model.safetensors");
    expect_error(1, {"inspect", m}, "model.safetensors");
  }
}

TEST(Usage, AModelWithoutTextParts) {
  const Scratch dir;
  write_tiny_model(dir / "bare", {.tokenizer = false, .chat_template = false});
  expect_error(1, {"run", dir / "bare", "-p", "a"}, "tokenizer.json");
  EXPECT_EQ(nibble({"logits", dir / "bare", "--tokens", "1,2", "--out", dir / "x.npy"}).code, 0);

  write_tiny_model(dir / "plain", {.tokenizer = true, .chat_template = false});
  const Outcome o = nibble({"run", dir / "plain", "-p", "a", "-n", "3", "--temp", "0"});
  EXPECT_EQ(o.code, 0);
  EXPECT_THAT(o.err, HasSubstr("no chat template"));
  EXPECT_EQ(o.out,
            nibble({"run", dir / "plain", "-p", "a", "-n", "3", "--temp", "0", "--raw"}).out);
  expect_error(1, {"chat", dir / "plain"}, "chat template");
}

TEST(Usage, ATemplateThatCannotRunIsAnError) {
  const Scratch dir;
  write_tiny_model(dir / "m");
  dir.write("m/chat_template.jinja", "{% frobnicate %}");
  expect_error(1, {"run", dir / "m", "-p", "a"}, "frobnicate");
  EXPECT_EQ(nibble({"run", dir / "m", "--raw", "-p", "a", "-n", "1"}).code, 0);
}

TEST(Usage, AClosedPipeEndsQuietly) {
  for (const Words& w : {Words{"run", tiny_model(), "-p", "a", "-n", "20"},
                         {"inspect", tiny_model()},
                         {"--help"},
                         {"tokenize", tiny_model(), "--text", "hello"}}) {
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    ::close(ends[0]);
    const Outcome o = nibble_into(ends[1], w);
    EXPECT_EQ(o.code, 0) << w[0];
    EXPECT_EQ(o.err, "") << w[0];
  }
}

TEST(Usage, AFullDiskIsAnError) {
  const int full = ::open("/dev/full", O_WRONLY | O_CLOEXEC);
  if (full < 0) GTEST_SKIP() << "no /dev/full";
  const Outcome o = nibble_into(full, {"inspect", tiny_model()});
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.err, HasSubstr("No space left"));
}

}  // namespace
}  // namespace nibble::cli_test
