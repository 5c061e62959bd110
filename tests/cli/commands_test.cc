// What the commands print: text, files and the documented JSON fields (docs/cli.md).
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "command.h"

namespace nibble::cli_test {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using Words = std::vector<std::string>;

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

json json_of(const Words& words, const std::string& in = {}) {
  const Outcome o = nibble(words, in);
  EXPECT_EQ(o.code, 0) << o.err;
  return o.json();
}

void expect_fields(const json& j, const std::vector<std::string>& names) {
  for (const auto& name : names) EXPECT_TRUE(j.contains(name)) << name;
}

const Words kAsk{"run", tiny_model(), "-p", "Hello there", "-n", "24", "--json"};

TEST(Run, JsonHoldsTheAnswer) {
  const json j = json_of(kAsk + Words{"--temp", "0"});
  expect_fields(j, {"text", "tokens", "finish_reason", "prompt_tokens", "prompt_tokens_per_second",
                    "tokens_per_second", "bytes_per_token", "gb_per_second", "bandwidth_fraction",
                    "seed", "activations", "device", "threads"});
  EXPECT_EQ(j["finish_reason"], "length");
  EXPECT_EQ(j["tokens"].size(), 24u);
  // "<|user|>", "user: Hello there", "<|end|>", "<|user|>"
  EXPECT_EQ(j["prompt_tokens"], 1 + 17 + 1 + 1);
  EXPECT_GT(j["prompt_tokens_per_second"], 0);
  EXPECT_GT(j["tokens_per_second"], 0);
  EXPECT_NEAR(j["gb_per_second"].get<double>(),
              j["tokens_per_second"].get<double>() * j["bytes_per_token"].get<double>() / 1e9,
              1e-6);
  EXPECT_EQ(j["activations"], "int16");
}

TEST(Run, TokensDependOnTheSeedAndOnNothingElse) {
  const json a = json_of(kAsk + Words{"--seed", "5", "--temp", "1.5"})["tokens"];
  EXPECT_EQ(json_of(kAsk + Words{"--seed", "5", "--temp", "1.5", "--threads", "1"})["tokens"], a);
  EXPECT_EQ(json_of(kAsk + Words{"--seed", "5", "--temp", "1.5", "--context", "100"})["tokens"], a);
  EXPECT_NE(json_of(kAsk + Words{"--seed", "6", "--temp", "1.5"})["tokens"], a);
}

TEST(Run, PaddingOfTheVocabularyIsNeverSampled) {
  const json j = json_of({"run", tiny_model(), "-p", "x", "-n", "400", "--json", "--temp", "9",
                          "--top-k", "0", "--top-p", "1", "--seed", "1"});
  for (const int id : j["tokens"]) EXPECT_LT(id, 259);
  EXPECT_GT(j["tokens"].size(), 0u);
}

TEST(Run, StreamsTheSameTextAndItsSpeedOnStderr) {
  const json j = json_of(kAsk + Words{"--temp", "0"});
  const Outcome o = nibble({"run", tiny_model(), "-p", "Hello there", "-n", "24", "--temp", "0"});
  EXPECT_EQ(o.out, j["text"].get<std::string>() + "\n");
  EXPECT_THAT(o.err, HasSubstr("prompt 20 tokens, "));
  EXPECT_THAT(o.err, HasSubstr("answer 24 tokens, "));
  EXPECT_THAT(o.err, HasSubstr(" GB/s ("));
}

TEST(Run, TakesThePromptFromAnywhere) {
  const Scratch dir;
  const json expected = json_of(kAsk + Words{"--temp", "0"})["tokens"];
  const Words rest{"-n", "24", "--json", "--temp", "0"};
  EXPECT_EQ(json_of(Words{"run", tiny_model(), "-p", "-"} + rest, "Hello there")["tokens"],
            expected);
  const std::string file = dir.write("prompt.txt", "Hello there");
  EXPECT_EQ(json_of(Words{"run", tiny_model(), "-f", file} + rest)["tokens"], expected);
}

TEST(Run, TemplateOptionsReachTheTemplate) {
  const auto count = [&](const Words& more) {
    return json_of(kAsk + more)["prompt_tokens"].get<int>();
  };
  EXPECT_EQ(count({"--raw"}), 11);
  EXPECT_EQ(count({"--system", "abc"}), 20 + 2 + 11);  // <|user|>system: abc<|end|>
  EXPECT_EQ(count({"--think", "on"}), 20 + 5);
  EXPECT_EQ(count({"--think", "off"}), 20);
}

TEST(Run, StopsBeforeAStopString) {
  const Words greedy = kAsk + Words{"--temp", "0"};
  const std::string text = json_of(greedy)["text"];
  ASSERT_GE(text.size(), 4u);
  // Any character boundary will do for the start of the stop string.
  std::size_t at = text.size() / 2;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  const std::string stop = text.substr(at);
  const json j = json_of(greedy + Words{"--stop", "never in there", "--stop", stop});
  EXPECT_EQ(j["text"], text.substr(0, text.find(stop)));
}

TEST(Quantize, WhatItWritesRunsInEveryActivationMode) {
  const Scratch dir;
  const Outcome o = nibble({"quantize", tiny_model(), dir / "int4", "--group", "32"});
  ASSERT_EQ(o.code, 0) << o.err;
  std::vector<std::string> files;
  for (const char* mode : {"fp32", "int16", "int8"}) {
    files.push_back(dir / (std::string(mode) + ".npy"));
    EXPECT_EQ(nibble({"logits", dir / "int4", "--tokens", "1,2,3", "--out", files.back(),
                      "--activations", mode})
                  .code,
              0);
  }
  EXPECT_TRUE(read_file(files[0]) != read_file(files[1]));
  EXPECT_TRUE(read_file(files[1]) != read_file(files[2]));
}

struct Array {
  std::int64_t rows = 0, columns = 0;
  std::vector<float> values;
};

Array read_npy(const std::string& path) {
  const std::string file = read_file(path);
  EXPECT_EQ(file.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  const std::size_t n =
      static_cast<unsigned char>(file[8]) + 256u * static_cast<unsigned char>(file[9]);
  EXPECT_EQ((10 + n) % 64, 0u);
  const std::string head = file.substr(10, n);
  EXPECT_EQ(head.back(), '\n');
  EXPECT_THAT(head, HasSubstr("'descr': '<f4', 'fortran_order': False, 'shape': ("));
  Array a;
  EXPECT_EQ(std::sscanf(head.c_str() + head.find('('), "(%ld, %ld)", &a.rows, &a.columns), 2);
  EXPECT_EQ(file.size() - 10 - n, static_cast<std::size_t>(a.rows * a.columns * 4));
  a.values.resize(static_cast<std::size_t>(a.rows * a.columns));
  std::memcpy(a.values.data(), file.data() + 10 + n, a.values.size() * 4);
  return a;
}

TEST(Logits, AreOneRowAPosition) {
  const Scratch dir;
  std::string ids;
  for (int i = 0; i < 300; ++i) ids += std::to_string(i * 7 % 256) + (i % 2 != 0 ? "\n" : ", ");
  const std::string list = dir.write("ids.txt", ids);
  ASSERT_EQ(nibble({"logits", tiny_model(), "--tokens-file", list, "--out", dir / "a.npy"}).code,
            0);
  const Array a = read_npy(dir / "a.npy");
  EXPECT_EQ(a.rows, 300);
  EXPECT_EQ(a.columns, kTinyVocab);
  // A shorter run gives the same first rows, bit for bit, and stdin is as good as a file.
  ASSERT_EQ(nibble({"logits", tiny_model(), "--tokens-file", "-", "--out", dir / "b.npy"},
                   ids.substr(0, ids.find("\n") + 1))
                .code,
            0);
  const Array b = read_npy(dir / "b.npy");
  ASSERT_EQ(b.rows, 2);
  EXPECT_EQ(std::memcmp(a.values.data(), b.values.data(), b.values.size() * 4), 0);
}

TEST(Logits, TheLastRowIsWhatRunSamplesFrom) {
  const Scratch dir;
  ASSERT_EQ(nibble({"logits", tiny_model(), "--tokens", "72,105", "--out", dir / "a.npy"}).code, 0);
  const Array a = read_npy(dir / "a.npy");
  int best = 0;
  for (int v = 0; v < 259; ++v)
    if (a.values[kTinyVocab + v] > a.values[kTinyVocab + best]) best = v;
  const json j =
      json_of({"run", tiny_model(), "--raw", "-p", "Hi", "-n", "1", "--temp", "0", "--json"});
  ASSERT_EQ(j["prompt_tokens"], 2);
  if (best == 258)
    EXPECT_EQ(j["finish_reason"], "stop");
  else
    EXPECT_EQ(j["tokens"], json({best}));
}

TEST(Logits, LeaveNothingBehindWhenTheyFail) {
  const Scratch dir;
  EXPECT_EQ(nibble({"logits", tiny_model(), "--tokens", "1,4000", "--out", dir / "a.npy"}).code, 1);
  EXPECT_TRUE(std::filesystem::is_empty(dir / ""));
}

TEST(Perplexity, JsonAndText) {
  std::string text;
  for (int i = 0; i < 700; ++i) text += static_cast<char>(' ' + i * i % 90);
  const Words words{"perplexity", tiny_model(), "--text", "-", "--window", "128"};
  const json j = json_of(words + Words{"--json"}, text);
  expect_fields(j, {"perplexity", "stderr", "windows", "window", "tokens", "text_tokens",
                    "activations", "device"});
  EXPECT_EQ(j["windows"], 5);
  EXPECT_EQ(j["tokens"], 5 * 63);
  EXPECT_EQ(j["text_tokens"], 700);
  EXPECT_GT(j["perplexity"], 1);
  EXPECT_GT(j["stderr"], 0);
  EXPECT_EQ(json_of(words + Words{"--json", "--windows", "2"}, text)["windows"], 2);
  // Documents: a token before each line, and all of a window but its first scored.
  const json d = json_of(words + Words{"--json", "--documents"}, text + "\n" + text);
  EXPECT_EQ(d["tokens"], d["windows"].get<int>() * 127);
  EXPECT_GE(d["text_tokens"], 1402);
  const Outcome o = nibble(words, text);
  char figure[32];
  std::snprintf(figure, sizeof figure, "perplexity %.4f +/- ", j["perplexity"].get<double>());
  EXPECT_THAT(o.out, testing::StartsWith(figure));
}

TEST(Inspect, ListsTheTensors) {
  const json j = json_of({"inspect", tiny_model(), "--json"});
  expect_fields(j, {"model", "format", "config", "generation", "tokenizer", "chat_template",
                    "parameters", "bytes", "types", "tensors"});
  EXPECT_EQ(j["tensors"].size(), 21u);
  EXPECT_EQ(j["config"]["hidden"], 64);
  EXPECT_EQ(j["config"]["architecture"], "llama");
  EXPECT_EQ(j["generation"]["eos"], json({258}));
  EXPECT_EQ(j["types"]["BF16"]["tensors"], 21);
  EXPECT_EQ(j["bytes"].get<int>(), 2 * j["parameters"].get<int>());
  EXPECT_EQ(j["chat_template"], true);
  const Outcome o = nibble({"inspect", tiny_model()});
  EXPECT_THAT(o.out, HasSubstr("model.layers.1.mlp.down_proj.weight"));
  EXPECT_THAT(o.out, HasSubstr("64 x 128"));
}

TEST(Tokenize, ThereAndBack) {
  const std::string text = "h\xc3\xa9llo\n<|end|>";
  const json j = json_of({"tokenize", tiny_model(), "--text", text, "--json"});
  EXPECT_EQ(j["ids"], json({'h', 0xc3, 0xa9, 'l', 'l', 'o', '\n', 258}));
  EXPECT_EQ(j["count"], 8);
  EXPECT_EQ(j["tokens"][7], "<|end|>");
  const Outcome ids = nibble({"tokenize", tiny_model(), "--text", text, "--ids"});
  EXPECT_EQ(ids.out, "104,195,169,108,108,111,10,258\n");
  EXPECT_EQ(nibble({"tokenize", tiny_model(), "--decode", ids.out}).out, text + "\n");
  EXPECT_EQ(nibble({"tokenize", tiny_model(), "--file", "-", "--ids"}, text).out, ids.out);
  const Outcome plain =
      nibble({"tokenize", tiny_model(), "--text", "<|end|>", "--ids", "--no-special"});
  EXPECT_EQ(plain.out, "60,124,101,110,100,124,62\n");
  EXPECT_EQ(nibble({"tokenize", tiny_model(), "--text", "a\n"}).out, "97\ta\n10\t\\n\n");
}

TEST(Bench, ModelInEveryFormat) {
  const Words words{"bench",   "model", tiny_model(), "--prompt", "64,128",    "--generate", "8",
                    "--depth", "0,100", "--repeat",   "2",        "--threads", "1"};
  const json j = json_of(words + Words{"--json"});
  ASSERT_EQ(j.size(), 6u);
  for (const json& row : j) {
    expect_fields(row, {"test", "tokens_per_second", "stddev", "bytes_per_token", "gb_per_second",
                        "bandwidth_fraction", "threads", "depth", "batch", "activations", "device",
                        "memory"});
    EXPECT_GT(row["memory"]["weights"], 0);
    EXPECT_GT(row["tokens_per_second"], 0);
    EXPECT_GT(row["bandwidth_fraction"], 0);
    EXPECT_EQ(row["threads"], 1);
  }
  EXPECT_EQ(j[0]["test"], "pp64");
  EXPECT_EQ(j[1]["test"], "pp128");
  EXPECT_EQ(j[2]["test"], "tg8");
  EXPECT_EQ(j[5]["depth"], 100);
  // Both depths read the same weights; the deeper one reads 100 more positions of cache.
  EXPECT_GT(j[5]["bytes_per_token"], j[2]["bytes_per_token"]);

  EXPECT_THAT(nibble(words + Words{"--format", "csv"}).out,
              testing::StartsWith("test,depth,threads,tokens_per_second,stddev,bytes_per_token,"
                                  "gb_per_second,bandwidth_fraction,batch\npp64,0,1,"));
  EXPECT_THAT(nibble(words + Words{"--format", "markdown"}).out, HasSubstr("|---|"));
  EXPECT_THAT(nibble(words).out, HasSubstr("% of read"));
  const json batch = json_of({"bench", "model", tiny_model(), "--prompt", "0", "--generate", "8",
                              "--batch", "1,3", "--repeat", "2", "--json"});
  ASSERT_EQ(batch.size(), 2u);
  EXPECT_EQ(batch[1]["batch"], 3);
  EXPECT_LT(batch[1]["bytes_per_token"], batch[0]["bytes_per_token"]);  // weights are shared
  const json random =
      json_of({"bench", "model", "--config", "qwen3.5-0.8b", "--random-weights", "--layers", "4",
               "--prompt", "0", "--generate", "2", "--repeat", "1", "--threads", "2", "--json"});
  ASSERT_EQ(random.size(), 1u);
  EXPECT_GT(random[0]["bytes_per_token"], 1.3e8);  // the head alone
}

TEST(Bench, FusedOperation) {
  const json j =
      json_of({"bench", "fused", "--shape", "40x256", "--activations", "int8,fp32", "--threads",
               "1,2", "--rows", "3", "--repeat", "2", "--cached", "--json"});
  ASSERT_EQ(j.size(), 4u);
  expect_fields(j[0], {"n", "k", "group", "rows", "activations", "device", "threads",
                       "microseconds", "quartile_low", "quartile_high", "bytes", "gb_per_second",
                       "read_gb_per_second", "bandwidth_fraction", "cached", "repeat"});
  EXPECT_EQ(j[0]["bytes"], 48 * 256 / 2 + 48 * 2 * 2);  // rows in tiles of 16
  EXPECT_EQ(j[1]["activations"], "fp32");
  EXPECT_EQ(j[3]["threads"], 2);
}

TEST(Bench, Bandwidth) {
  const json j = json_of({"bench", "bandwidth", "--seconds", "0", "--threads", "1", "--json"});
  expect_fields(j, {"gb_per_second", "quartile_low", "quartile_high", "passes", "buffer_bytes",
                    "cache_bytes", "threads"});
  EXPECT_GT(j["gb_per_second"], 0);
  EXPECT_EQ(j["threads"], 1);
  EXPECT_THAT(nibble({"bench", "bandwidth", "--seconds", "0"}).out, testing::StartsWith("read "));
}

TEST(Verify, ShapesAsTableAndJson) {
  const Words words{"verify", "--shape", "24x256,5x96", "--activations", "int16,fp32"};
  const json j = json_of(words + Words{"--json"});
  expect_fields(j, {"rows", "failed", "skipped", "commit", "machine", "device", "seconds"});
  EXPECT_EQ(j["failed"], 0);
  ASSERT_EQ(j["rows"].size(), 4u);
  for (const json& row : j["rows"]) {
    expect_fields(row, {"n", "k", "type", "group", "pieces", "activations", "weight_error", "worst",
                        "bound", "bits", "runs", "note", "failed"});
    EXPECT_EQ(row["bits"], "equal");
    EXPECT_FALSE(row["failed"]);
    EXPECT_LT(row["worst"], row["bound"]);
  }
  EXPECT_EQ(j["rows"][0]["n"], 24);
  EXPECT_EQ(j["rows"][2]["group"], 32);
  const std::string table = nibble(words).out;
  for (const char* says : {"commit ", "machine ", "24x256", "equal, ", "failed: 0"})
    EXPECT_THAT(table, HasSubstr(says));
}

TEST(Verify, ExplainIsOnePageWithTheFiguresOfItsJson) {
  const json j = json_of({"verify", "--explain", "--json"});
  expect_fields(j, {"lines", "late", "curve"});
  ASSERT_EQ(j["lines"].size(), 4u);
  expect_fields(j["lines"][0], {"n", "k", "in_order", "in_place", "split_above_512", "nibble",
                                "nibble_bits_equal"});
  EXPECT_TRUE(j["lines"][0]["nibble_bits_equal"]);
  const std::string page = nibble({"verify", "--explain"}).out;
  EXPECT_LE(std::count(page.begin(), page.end(), '\n'), 60);
  EXPECT_THAT(page, HasSubstr("8704x5120"));
  EXPECT_THAT(page, HasSubstr(fmt::format("{:.3f}", j["lines"][0]["in_place"].get<double>())));
}

TEST(Verify, Stress) {
  const json j = json_of({"verify", "--stress", "50", "--shape", "32x256", "--threads", "3",
                          "--activations", "int16", "--json"});
  ASSERT_EQ(j["rows"].size(), 1u);
  expect_fields(j["rows"][0], {"n", "k", "activations", "calls", "differing", "seconds"});
  EXPECT_EQ(j["rows"][0]["calls"], 50);
  EXPECT_EQ(j["rows"][0]["differing"], 0);
}

}  // namespace
}  // namespace nibble::cli_test
