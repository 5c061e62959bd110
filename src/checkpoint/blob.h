// The bytes of one file: mapped, or (tests, fuzzers) lent by the caller. Shared by every weight
// source that reads from it, so that a source may outlive its checkpoint.
#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "base/file.h"

namespace nibble {

class Blob {
 public:
  // Throws Error naming the file when it cannot be mapped.
  static std::shared_ptr<const Blob> map(const std::filesystem::path& path) {
    auto b = std::shared_ptr<Blob>(new Blob);
    b->map_.emplace(path);
    b->bytes_ = b->map_->bytes();
    b->name_ = path.string();
    return b;
  }
  // `bytes` must outlive the blob. `name` stands for the file in errors.
  static std::shared_ptr<const Blob> view(std::span<const std::byte> bytes, std::string name) {
    auto b = std::shared_ptr<Blob>(new Blob);
    b->bytes_ = bytes;
    b->name_ = std::move(name);
    return b;
  }

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::string& name() const { return name_; }

  // Drops the pages of `part` (inside bytes()) from memory, the first included though it may begin
  // before: a reader that goes forward is done with that, and dropped pages stay readable.
  void release(std::span<const std::byte> part) const {
    if (!map_ || part.empty()) return;
    constexpr std::size_t kPage = 4096;
    const auto offset = static_cast<std::size_t>(part.data() - bytes_.data());
    const std::size_t back = offset < kPage - 1 ? offset : kPage - 1;
    map_->release({part.data() - back, part.size() + back});
  }

 private:
  Blob() = default;
  std::optional<MappedFile> map_;
  std::span<const std::byte> bytes_;
  std::string name_;
};

}  // namespace nibble
