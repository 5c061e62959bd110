#include "checkpoint/checkpoint.h"

#include <algorithm>

#include "base/error.h"
#include "checkpoint/reader.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::unique_ptr<Checkpoint> open_directory(const fs::path& path) {
  const auto exists = [path](const std::string& file) {
    std::error_code ignored;
    return fs::is_regular_file(path / file, ignored);
  };
  if (!exists("config.json")) {
    std::string gguf;
    std::error_code ignored;
    for (const auto& e : fs::directory_iterator(path, ignored))
      if (e.path().extension() == ".gguf") gguf += fmt::format(" {}", e.path().string());
    require(gguf.empty(), "{}: a directory without config.json; give the GGUF file itself:{}",
            path.string(), gguf);
    fail("{}: no config.json; a Hugging Face model directory or a .gguf file is needed",
         path.string());
  }
  constexpr std::uint64_t kMaxText = 64u << 20;  // large vocabularies' tokenizer.json has 20 MB
  return open_hf({path.string(),
                  [=](const std::string& file) -> std::optional<std::string> {
                    if (!exists(file)) return std::nullopt;
                    return read_file(path / file, kMaxText);
                  },
                  [=](const std::string& file) -> std::shared_ptr<const Blob> {
                    if (!exists(file)) return nullptr;
                    return Blob::map(path / file);
                  }});
}

}  // namespace

std::unique_ptr<Checkpoint> Checkpoint::open(const fs::path& path, const OpenOptions& options) {
  std::error_code ignored;
  require(fs::exists(path, ignored), "{}: no such file or directory", path.string());
  if (fs::is_directory(path, ignored)) return open_directory(path);
  require(fs::is_regular_file(path, ignored), "{}: neither a file nor a directory", path.string());
  auto file = Blob::map(path);
  const auto bytes = file->bytes();
  const std::string_view head(reinterpret_cast<const char*>(bytes.data()),
                              std::min<std::size_t>(bytes.size(), 4));
  if (head == "GGUF") return open_gguf(std::move(file), options);
  require(path.extension() != ".safetensors",
          "{}: give the directory instead, with config.json beside the weights", path.string());
  fail("{}: neither a GGUF file nor a model directory", path.string());
}

}  // namespace nibble
