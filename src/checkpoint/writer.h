// Writes safetensors files as their data comes, without ever holding them in memory.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/file.h"

namespace nibble {

struct PlannedTensor {
  std::string name;
  DType dtype = DType::F32;
  std::vector<std::int64_t> shape;  // no dimension negative, product * dtype_size below 2^63
  std::uint64_t bytes() const;
};

// One model.safetensors, or where that would hold more than `shard_bytes` of data, shards
// model-00001-of-0000N.safetensors and model.safetensors.index.json. A tensor lies in one shard,
// alone if it is larger than that. Every tensor's data is aligned to its element size, as PyTorch
// needs: one whose bytes are no multiple of 8 goes to the end of its shard, and is kept in memory
// till then.
class SafetensorsWriter {
 public:
  // Nothing is written yet. Error when there is no tensor, or a name is given twice.
  SafetensorsWriter(std::filesystem::path directory, std::vector<PlannedTensor> tensors,
                    std::uint64_t shard_bytes);
  ~SafetensorsWriter();

  std::uint64_t total_bytes() const;  // of all shards, headers included
  std::size_t shards() const { return shards_.size(); }

  // The next bytes of the data of all tensors, one after the other in the order they were given.
  // Error naming the file.
  void write(const void* data, std::uint64_t bytes);
  // All data is written: completes the last file and the index. Error naming the tensor that lacks
  // data.
  void finish();

 private:
  struct Shard {
    std::string file, header;         // header: the length field included
    std::size_t first = 0, last = 0;  // its tensors: [first, last)
    std::uint64_t bytes = 0;          // of data
  };
  std::string header(const Shard& shard) const;
  std::vector<std::size_t> layout(const Shard& shard) const;
  void skip_complete();
  void open_shard();
  void close_shard();

  std::filesystem::path directory_;
  std::vector<PlannedTensor> tensors_;
  std::vector<Shard> shards_;
  std::size_t shard_ = 0, tensor_ = 0;       // where the next byte goes
  std::uint64_t done_ = 0;                   // bytes of tensor_ already taken
  std::unique_ptr<AtomicFile> file_;         // shards_[shard_], once it has data
  std::vector<std::vector<char>> deferred_;  // by tensor - first: data that waits for the end
};

}  // namespace nibble
