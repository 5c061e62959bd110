// Small checkpoints built in memory, right or wrong at will.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "checkpoint/reader.h"

namespace nibble::test {

inline std::span<const std::byte> bytes_of(std::string_view s) {
  return {reinterpret_cast<const std::byte*>(s.data()), s.size()};
}

template <class T>
void put(std::string& out, T v) {
  out.append(reinterpret_cast<const char*>(&v), sizeof v);
}
template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}
inline std::string halves(const std::vector<float>& values) {
  std::string s;
  for (const float v : values) put(s, float_to_half(v));
  return s;
}
inline std::string bfloats(const std::vector<float>& values) {
  std::string s;
  for (const float v : values) put(s, float_to_bf16(v));
  return s;
}

// The message of the Error that `f` throws; a test failure if it throws none.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return "";
}

// A safetensors file: tensors in order, or a header given as text.
class SafetensorsFile {
 public:
  SafetensorsFile& add(const std::string& name, const std::string& dtype,
                       const std::vector<std::int64_t>& shape, const std::string& data) {
    const std::size_t begin = data_.size();
    data_ += data;
    header_ += fmt::format(R"({}"{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                           header_.empty() ? "" : ",", name, dtype, fmt::join(shape, ","), begin,
                           data_.size());
    return *this;
  }
  std::string build() const { return build("{" + header_ + "}", data_); }
  static std::string build(const std::string& header, const std::string& data) {
    std::string s;
    put(s, static_cast<std::uint64_t>(header.size()));
    return s + header + data;
  }

 private:
  std::string header_, data_;
};

// A GGUF file, version 3. Values are given with their type numbers already chosen.
class GgufFile {
 public:
  GgufFile& u32(std::string_view key, std::uint32_t v) { return value(key, 4, v); }
  GgufFile& f32(std::string_view key, float v) { return value(key, 6, v); }
  GgufFile& boolean(std::string_view key, bool v) { return value(key, 7, std::uint8_t{v}); }
  GgufFile& string(std::string_view key, std::string_view v) {
    begin(key, 8);
    put_string(meta_, v);
    return *this;
  }
  GgufFile& strings(std::string_view key, const std::vector<std::string>& list) {
    begin(key, 9);
    put<std::uint32_t>(meta_, 8);
    put<std::uint64_t>(meta_, list.size());
    for (const auto& s : list) put_string(meta_, s);
    return *this;
  }
  GgufFile& i32s(std::string_view key, const std::vector<std::int32_t>& list) {
    begin(key, 9);
    put<std::uint32_t>(meta_, 5);
    put<std::uint64_t>(meta_, list.size());
    meta_ += raw(list);
    return *this;
  }
  // A key with a value type and whatever bytes follow.
  GgufFile& bytes(std::string_view key, std::uint32_t type, std::string_view value) {
    begin(key, type);
    meta_ += value;
    return *this;
  }

  // shape: outermost first. The offset is where the data falls, plus `shift`.
  GgufFile& tensor(std::string_view name, std::uint32_t type, std::vector<std::int64_t> shape,
                   const std::string& data, std::int64_t shift = 0) {
    data_.resize((data_.size() + 31) / 32 * 32);
    put_string(table_, name);
    put(table_, static_cast<std::uint32_t>(shape.size()));
    for (auto d = shape.rbegin(); d != shape.rend(); ++d)
      put(table_, static_cast<std::uint64_t>(*d));
    put(table_, type);
    put(table_, static_cast<std::uint64_t>(static_cast<std::int64_t>(data_.size()) + shift));
    data_ += data;
    ++tensors_;
    return *this;
  }
  GgufFile& f32_tensor(std::string_view name, std::vector<std::int64_t> shape,
                       const std::vector<float>& values) {
    return tensor(name, 0, std::move(shape), raw(values));
  }

  std::string header() const {
    std::string s = "GGUF";
    put(s, version);
    put(s, tensors_ + extra_tensors);
    put(s, keys_ + extra_keys);
    return s + meta_ + table_;
  }
  std::string build() const {
    std::string s = header();
    s.resize((s.size() + 31) / 32 * 32);
    return s + data_;
  }

  std::uint32_t version = 3;
  std::uint64_t extra_tensors = 0, extra_keys = 0;  // claimed beyond those that are there

 private:
  static void put_string(std::string& out, std::string_view v) {
    put<std::uint64_t>(out, v.size());
    out += v;
  }
  void begin(std::string_view key, std::uint32_t type) {
    put_string(meta_, key);
    put(meta_, type);
    ++keys_;
  }
  template <class T>
  GgufFile& value(std::string_view key, std::uint32_t type, T v) {
    begin(key, type);
    put(meta_, v);
    return *this;
  }

  std::string meta_, table_, data_;
  std::uint64_t tensors_ = 0, keys_ = 0;
};

// Files by name, as a Directory; `files` must outlive what is opened from it.
inline Directory directory(const std::map<std::string, std::string>& files) {
  return {"dir",
          [&files](const std::string& f) -> std::optional<std::string> {
            const auto it = files.find(f);
            return it == files.end() ? std::nullopt : std::optional(it->second);
          },
          [&files](const std::string& f) -> std::shared_ptr<const Blob> {
            const auto it = files.find(f);
            return it == files.end() ? nullptr : Blob::view(bytes_of(it->second), "dir/" + f);
          }};
}

// A directory on disk that goes with the object.
class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "nibble.XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::filesystem::path& path() const { return path_; }
  void write(const std::string& file, std::string_view text) const {
    std::ofstream(path_ / file, std::ios::binary)
        .write(text.data(), static_cast<long>(text.size()));
  }

 private:
  std::filesystem::path path_;
};

}  // namespace nibble::test
