#include "command.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>

#include "base/file.h"
#include "base/half.h"

namespace nibble::cli_test {
namespace {

using Json = nlohmann::ordered_json;

Outcome spawn(const std::vector<std::string>& arguments, const std::string& in, int out_fd) {
  const Scratch files;
  files.write("in", in);
  std::vector<std::string> words{NIBBLE_COMMAND};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  argv.push_back(nullptr);
  const std::string in_path = files / "in", out_path = files / "out", err_path = files / "err";
  const pid_t child = ::fork();
  if (child == 0) {
    const int out = out_fd >= 0 ? out_fd : ::open(out_path.c_str(), O_WRONLY | O_CREAT, 0600);
    ::dup2(::open(in_path.c_str(), O_RDONLY), 0);
    ::dup2(out, 1);
    ::dup2(::open(err_path.c_str(), O_WRONLY | O_CREAT, 0600), 2);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  if (out_fd >= 0) ::close(out_fd);
  int status = 0;
  ::waitpid(child, &status, 0);
  Outcome o;
  o.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (out_fd < 0) o.out = read_file(out_path);
  o.err = read_file(err_path);
  return o;
}

// The character that stands for a byte in tokenizer.json.
std::string letter_of(int byte, int& next) {
  const bool shown = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  const int c = shown ? byte : next++;
  if (c < 0x80) return {static_cast<char>(c)};
  return {static_cast<char>(0xc0 | (c >> 6)), static_cast<char>(0x80 | (c & 63))};
}

Json tokenizer_json() {
  Json vocab = Json::object();
  for (int b = 0, next = 256; b < 256; ++b) vocab[letter_of(b, next)] = b;
  Json added = Json::array();
  for (const char* text : {"<s>", "<|user|>", "<|end|>"})
    added.push_back({{"id", 256 + added.size()},
                     {"content", text},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
}

class TensorFile {
 public:
  // Values of standard deviation about `scale`, from a fixed generator; norms are near 1.
  void add(const std::string& name, std::vector<std::int64_t> shape, float scale) {
    std::int64_t n = 1;
    for (const std::int64_t s : shape) n *= s;
    const std::size_t begin = data_.size();
    for (std::int64_t i = 0; i < n; ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      const float u = static_cast<float>(state_ >> 40) * 0x1p-24f * 2 - 1;
      const std::uint16_t bits = float_to_bf16(shape.size() == 1 ? 1 + 0.1f * u : 1.7f * scale * u);
      data_.append(reinterpret_cast<const char*>(&bits), 2);
    }
    head_[name] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }
  std::string bytes() const {
    std::string head = head_.dump();
    head.resize((head.size() + 7) / 8 * 8, ' ');
    const std::uint64_t n = head.size();
    return std::string(reinterpret_cast<const char*>(&n), 8) + head + data_;
  }

 private:
  Json head_ = Json::object();
  std::string data_;
  std::uint64_t state_ = 1;
};

}  // namespace

Outcome nibble(const std::vector<std::string>& arguments, const std::string& input) {
  return spawn(arguments, input, -1);
}

Outcome nibble_into(int fd, const std::vector<std::string>& arguments) {
  return spawn(arguments, {}, fd);
}

Scratch::Scratch() {
  std::string name = (std::filesystem::temp_directory_path() / "nibble-cli-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp " + name);
  path_ = name;
}

Scratch::~Scratch() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string Scratch::write(const std::string& name, const std::string& text) const {
  std::ofstream(path_ / name, std::ios::binary) << text;
  return *this / name;
}

void write_tiny_model(const std::string& folder, const TinyOptions& options) {
  constexpr int kHidden = 64, kInner = 128, kKv = 32, kLayers = 2;
  std::filesystem::create_directories(folder);
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(folder + "/" + name, std::ios::binary) << text;
  };
  write("config.json", Json{{"architectures", {"LlamaForCausalLM"}},
                            {"model_type", "llama"},
                            {"hidden_size", kHidden},
                            {"intermediate_size", kInner},
                            {"num_hidden_layers", kLayers},
                            {"num_attention_heads", 2},
                            {"num_key_value_heads", 1},
                            {"vocab_size", kTinyVocab},
                            {"max_position_embeddings", kTinyContext},
                            {"rms_norm_eps", 1e-5},
                            {"rope_theta", 10000.0},
                            {"hidden_act", "silu"},
                            {"tie_word_embeddings", false},
                            {"bos_token_id", 256},
                            {"eos_token_id", 258},
                            {"torch_dtype", "bfloat16"}}
                           .dump());
  TensorFile file;
  file.add("model.embed_tokens.weight", {kTinyVocab, kHidden}, 1);
  for (int layer = 0; layer < kLayers; ++layer) {
    const std::string at = "model.layers." + std::to_string(layer) + ".";
    file.add(at + "input_layernorm.weight", {kHidden}, 0);
    file.add(at + "post_attention_layernorm.weight", {kHidden}, 0);
    file.add(at + "self_attn.q_proj.weight", {kHidden, kHidden}, 0.3f);
    file.add(at + "self_attn.k_proj.weight", {kKv, kHidden}, 0.3f);
    file.add(at + "self_attn.v_proj.weight", {kKv, kHidden}, 0.3f);
    file.add(at + "self_attn.o_proj.weight", {kHidden, kHidden}, 0.3f);
    file.add(at + "mlp.gate_proj.weight", {kInner, kHidden}, 0.3f);
    file.add(at + "mlp.up_proj.weight", {kInner, kHidden}, 0.3f);
    file.add(at + "mlp.down_proj.weight", {kHidden, kInner}, 0.3f);
  }
  file.add("model.norm.weight", {kHidden}, 0);
  file.add("lm_head.weight", {kTinyVocab, kHidden}, 0.3f);
  write("model.safetensors", file.bytes());
  if (options.tokenizer) write("tokenizer.json", tokenizer_json().dump());
  if (options.chat_template)
    write("chat_template.jinja",
          "{% for m in messages %}<|user|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
          "{% if enable_thinking %}think{% endif %}"
          "{% if add_generation_prompt %}<|user|>{% endif %}");
}

const std::string& tiny_model() {
  static const Scratch folder;
  static const std::string path = [] {
    write_tiny_model(folder / "tiny");
    return folder / "tiny";
  }();
  return path;
}

}  // namespace nibble::cli_test
