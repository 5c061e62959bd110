// Files: read-only memory maps, whole-file reads with a size limit, and writes that never
// leave a half-written file under the name the user gave.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace nibble {

// A read-only map of a whole file. Throws Error naming the file. Movable, not copyable.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& o) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  // Hints that `part` (inside bytes()) is no longer needed: whole pages in it are dropped from
  // this process's resident set. Reading them again is legal and re-reads the file.
  void release(std::span<const std::byte> part) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// The whole file as a string; throws Error if it cannot be read or is larger than max_bytes.
std::string read_file(const std::filesystem::path& path, std::uint64_t max_bytes = 256u << 20);

// Writes `text` to a temporary name beside `path`, syncs, then renames. Throws Error naming the
// file (and "no space left" when that is why); what stood under `path` is untouched on failure.
void write_file(const std::filesystem::path& path, std::string_view text);

// Sequential writer with the same guarantee. Destroyed before commit(): the temporary goes.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(const void* data, std::size_t bytes);  // throws Error naming the file
  void commit();                                    // flush, fsync, rename

 private:
  std::filesystem::path path_, temp_;
  int fd_ = -1;
};

}  // namespace nibble
