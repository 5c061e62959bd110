#include "checkpoint/writer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/error.h"

namespace nibble {
namespace {

using nlohmann::json;

bool deferred(const PlannedTensor& t) { return t.bytes() % 8 != 0; }

}  // namespace

std::uint64_t PlannedTensor::bytes() const {
  std::uint64_t n = dtype_size(dtype);
  for (const std::int64_t d : shape) n *= static_cast<std::uint64_t>(d);
  return n;
}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path directory,
                                     std::vector<PlannedTensor> tensors, std::uint64_t shard_bytes)
    : directory_(std::move(directory)), tensors_(std::move(tensors)) {
  require(!tensors_.empty(), "{}: there is no tensor to write", directory_.string());
  std::set<std::string_view> names;
  for (const PlannedTensor& t : tensors_)
    require(names.insert(t.name).second, "tensor {} would be written twice", t.name);
  shards_.emplace_back();
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const std::uint64_t bytes = tensors_[i].bytes();
    Shard* s = &shards_.back();
    if (s->last > s->first && s->bytes + bytes > shard_bytes) {
      shards_.push_back({});
      s = &shards_.back();
      s->first = i;
    }
    s->last = i + 1;
    s->bytes += bytes;
  }
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    shards_[i].file = shards_.size() == 1
                          ? "model.safetensors"
                          : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards_.size());
    shards_[i].header = header(shards_[i]);
  }
}

SafetensorsWriter::~SafetensorsWriter() = default;

std::uint64_t SafetensorsWriter::total_bytes() const {
  std::uint64_t n = 0;
  for (const Shard& s : shards_) n += s.header.size() + s.bytes;
  return n;
}

// The order of a shard's data: multiples of 8 bytes first, then elements of falling size.
std::vector<std::size_t> SafetensorsWriter::layout(const Shard& shard) const {
  std::vector<std::size_t> order;
  for (std::size_t i = shard.first; i < shard.last; ++i) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [this](std::size_t a, std::size_t b) {
    const auto rank = [this](std::size_t i) {
      return deferred(tensors_[i]) ? 8 - dtype_size(tensors_[i].dtype) : 0;
    };
    return rank(a) < rank(b);
  });
  return order;
}

std::string SafetensorsWriter::header(const Shard& shard) const {
  json root;
  root["__metadata__"] = {{"format", "pt"}};
  std::uint64_t offset = 0;
  for (const std::size_t i : layout(shard)) {
    const PlannedTensor& t = tensors_[i];
    root[t.name] = {{"dtype", dtype_name(t.dtype)},
                    {"shape", t.shape},
                    {"data_offsets", {offset, offset + t.bytes()}}};
    offset += t.bytes();
  }
  std::string text = root.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<char>((text.size() >> (8 * i)) & 255);
  return length + text;
}

// Moves on past every tensor that has all its data; completes the shards left behind.
void SafetensorsWriter::skip_complete() {
  while (tensor_ < tensors_.size() && done_ == tensors_[tensor_].bytes()) {
    done_ = 0;
    if (++tensor_ == shards_[shard_].last) close_shard();
  }
}

void SafetensorsWriter::write(const void* data, std::uint64_t bytes) {
  const char* p = static_cast<const char*>(data);
  for (skip_complete(); bytes > 0; skip_complete()) {
    require(tensor_ < tensors_.size(), "{}: more data than tensors", directory_.string());
    const Shard& shard = shards_[shard_];
    const PlannedTensor& t = tensors_[tensor_];
    const std::uint64_t n = std::min(bytes, t.bytes() - done_);
    open_shard();
    if (deferred(t)) {
      auto& kept = deferred_[tensor_ - shard.first];
      kept.insert(kept.end(), p, p + n);
    } else {
      file_->write(p, n);
    }
    p += n;
    bytes -= n;
    done_ += n;
  }
}

void SafetensorsWriter::open_shard() {
  if (file_) return;
  const Shard& shard = shards_[shard_];
  file_ = std::make_unique<AtomicFile>(directory_ / shard.file);
  file_->write(shard.header.data(), shard.header.size());
  deferred_.assign(shard.last - shard.first, {});
}

void SafetensorsWriter::close_shard() {
  open_shard();  // it may hold no data
  const Shard& shard = shards_[shard_++];
  for (const std::size_t i : layout(shard)) {
    const auto& kept = deferred_[i - shard.first];
    file_->write(kept.data(), kept.size());
  }
  file_->commit();
  file_.reset();
}

void SafetensorsWriter::finish() {
  skip_complete();
  if (tensor_ < tensors_.size())
    fail("{}: tensor {} lacks {} bytes", directory_.string(), tensors_[tensor_].name,
         tensors_[tensor_].bytes() - done_);
  if (shards_.size() == 1) return;
  json index;
  std::uint64_t total = 0;
  for (const Shard& s : shards_) total += s.bytes;
  index["metadata"] = {{"total_size", total}};
  for (const Shard& s : shards_)
    for (std::size_t i = s.first; i < s.last; ++i) index["weight_map"][tensors_[i].name] = s.file;
  write_file(directory_ / "model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace nibble
