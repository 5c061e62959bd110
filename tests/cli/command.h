// Runs the `nibble` command as a user does, and makes the tiny model it is run on.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace nibble::cli_test {

struct Outcome {
  int code = -1;  // 128 + signal when it was killed
  std::string out, err;
  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

// Waits for the command with these arguments; `input` is its standard input.
Outcome nibble(const std::vector<std::string>& arguments, const std::string& input = {});
// Standard output goes to this file descriptor instead, which is closed here.
Outcome nibble_into(int fd, const std::vector<std::string>& arguments);

// A folder that goes with the object.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, const std::string& text) const;  // its path

 private:
  std::filesystem::path path_;
};

constexpr int kTinyVocab = 264;  // 256 bytes, <s>, <|user|>, <|end|>, and 5 ids of padding
constexpr int kTinyContext = 4096;

struct TinyOptions {
  bool tokenizer = true, chat_template = true;
};
// A random Llama of two layers with a byte tokenizer, in `folder`, in 16 bit.
void write_tiny_model(const std::string& folder, const TinyOptions& options = {});
// One folder with such a model for all tests of the process.
const std::string& tiny_model();

}  // namespace nibble::cli_test
