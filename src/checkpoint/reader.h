// The two readers behind Checkpoint::open, given bytes instead of paths.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "checkpoint/blob.h"
#include "checkpoint/checkpoint.h"

namespace nibble {

// A directory as a reader sees it. `file` is a plain file name.
struct Directory {
  std::string name;                                                         // for errors
  std::function<std::optional<std::string>(const std::string& file)> text;  // nullopt: no such file
  std::function<std::shared_ptr<const Blob>(const std::string& file)>
      blob;  // nullptr: no such file
};

// A Hugging Face directory: config.json and safetensors. Error as Checkpoint::open.
std::unique_ptr<Checkpoint> open_hf(Directory directory);
// A GGUF file. Error as Checkpoint::open.
std::unique_ptr<Checkpoint> open_gguf(std::shared_ptr<const Blob> file, const OpenOptions& options);

}  // namespace nibble
