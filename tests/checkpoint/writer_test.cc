#include "checkpoint/writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "builders.h"
#include "checkpoint/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::TempDir;
using testing::HasSubstr;

// The data of all tensors of all files, by name; every file checked by the reader.
std::map<std::string, std::pair<StoredTensor, std::string>> read_back(const fs::path& dir) {
  std::map<std::string, std::pair<StoredTensor, std::string>> all;
  for (const auto& entry : fs::directory_iterator(dir)) {
    if (entry.path().extension() != ".safetensors") continue;
    const MappedFile file(entry.path());
    std::uint64_t header = 0;
    std::memcpy(&header, file.bytes().data(), 8);
    EXPECT_EQ(header % 8, 0u);
    for (StoredTensor& t : parse_safetensors(file.bytes(), "f")) {
      EXPECT_EQ((t.data.data() - file.bytes().data()) % static_cast<long>(dtype_size(t.dtype)), 0)
          << t.name;
      std::string data(reinterpret_cast<const char*>(t.data.data()), t.data.size());
      EXPECT_TRUE(all.try_emplace(t.name, t, std::move(data)).second);
    }
  }
  return all;
}

RC_GTEST_PROP(Writer, EveryTensorComesBack, ()) {
  const TempDir dir;
  std::vector<PlannedTensor> tensors;
  std::string data;
  const auto count = *rc::gen::inRange(1, 12);
  for (int i = 0; i < count; ++i) {
    const auto type =
        *rc::gen::element(DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::U8);
    tensors.push_back(
        {"t" + std::to_string(i), type,
         *rc::gen::container<std::vector<std::int64_t>>(rc::gen::inRange<std::int64_t>(0, 6))});
    tensors.back().shape.resize(std::min<std::size_t>(tensors.back().shape.size(), 3));
    for (std::uint64_t b = 0; b < tensors.back().bytes(); ++b)
      data += static_cast<char>(data.size() * 37 + static_cast<std::size_t>(i));
  }
  const auto limit = *rc::gen::inRange<std::uint64_t>(1, 2000);
  SafetensorsWriter writer(dir.path(), tensors, limit);
  for (std::size_t at = 0; at < data.size();) {  // in pieces that ignore where tensors end
    const std::size_t n = std::min<std::size_t>(static_cast<std::size_t>(*rc::gen::inRange(1, 300)),
                                                data.size() - at);
    writer.write(data.data() + at, n);
    at += n;
  }
  writer.finish();

  const auto all = read_back(dir.path());
  RC_ASSERT(all.size() == tensors.size());
  std::size_t at = 0;
  for (const PlannedTensor& t : tensors) {
    const auto& [stored, bytes] = all.at(t.name);
    RC_ASSERT(stored.dtype == t.dtype);
    RC_ASSERT(stored.shape == t.shape);
    RC_ASSERT(bytes == data.substr(at, t.bytes()));
    at += t.bytes();
  }
  std::uint64_t on_disk = 0;
  for (const auto& entry : fs::directory_iterator(dir.path()))
    if (entry.path().extension() == ".safetensors") on_disk += fs::file_size(entry.path());
  RC_ASSERT(on_disk == writer.total_bytes());
}

TEST(Writer, ShardsAndTheirIndex) {
  const TempDir dir;
  // 40 + 40 fit one shard of 80; 100 is larger than any; 8 opens the next.
  SafetensorsWriter writer(dir.path(),
                           {{"a", DType::F32, {10}},
                            {"b", DType::F32, {10}},
                            {"c", DType::F32, {25}},
                            {"d", DType::F32, {2}}},
                           80);
  EXPECT_EQ(writer.shards(), 3u);
  const std::vector<float> data(47, 1.5f);
  writer.write(data.data(), data.size() * 4);
  writer.finish();
  const auto index = nlohmann::json::parse(read_file(dir.path() / "model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], 188);
  EXPECT_EQ(index["weight_map"]["a"], "model-00001-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"]["b"], "model-00001-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"]["c"], "model-00002-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"]["d"], "model-00003-of-00003.safetensors");
  EXPECT_FALSE(fs::exists(dir.path() / "model.safetensors"));
}

TEST(Writer, OneFileHasNoIndex) {
  const TempDir dir;
  SafetensorsWriter writer(dir.path(), {{"a", DType::F32, {2}}}, 80);
  writer.write("12345678", 8);
  writer.finish();
  EXPECT_TRUE(fs::exists(dir.path() / "model.safetensors"));
  EXPECT_FALSE(fs::exists(dir.path() / "model.safetensors.index.json"));
}

TEST(Writer, WrongUseIsAnError) {
  const TempDir dir;
  EXPECT_THAT(error_of([&] {
                SafetensorsWriter(dir.path(), {{"a", DType::F32, {2}}, {"a", DType::F32, {2}}}, 80);
              }),
              HasSubstr("tensor a would be written twice"));
  EXPECT_THAT(error_of([&] { SafetensorsWriter(dir.path(), {}, 80); }),
              HasSubstr("no tensor to write"));
  {
    SafetensorsWriter writer(dir.path(), {{"a", DType::F32, {2}}}, 80);
    writer.write("1234", 4);
    EXPECT_THAT(error_of([&] { writer.finish(); }), HasSubstr("tensor a lacks 4 bytes"));
    writer.write("5678", 4);
    EXPECT_THAT(error_of([&] { writer.write("x", 1); }), HasSubstr("more data than tensors"));
  }
  SafetensorsWriter nowhere(dir.path() / "none", {{"a", DType::F32, {2}}}, 80);
  EXPECT_THAT(error_of([&] { nowhere.write("1", 1); }), HasSubstr("none/model.safetensors"));
}

TEST(Writer, AnUnfinishedFileLeavesNothing) {
  const TempDir dir;
  {
    SafetensorsWriter writer(dir.path(), {{"a", DType::F32, {2}}}, 80);
    writer.write("1234", 4);
    EXPECT_FALSE(fs::is_empty(dir.path()));
  }
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

}  // namespace
}  // namespace nibble
