// A small GGUF model to vary, opened from memory.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "builders.h"

namespace nibble::test {

// What every model file has. hidden 64, 2 heads of 32 and 1 KV head, feed-forward 256.
inline GgufFile model(const std::string& arch = "llama", const std::string& skip = "") {
  GgufFile f;
  f.string("general.architecture", arch);
  const std::pair<const char*, std::uint32_t> keys[] = {
      {"block_count", 1},           {"context_length", 128},     {"embedding_length", 64},
      {"feed_forward_length", 256}, {"attention.head_count", 2}, {"attention.head_count_kv", 1}};
  for (const auto& [key, value] : keys)
    if (key != skip) f.u32(arch + "." + key, value);
  f.f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f);
  f.f32(arch + ".rope.freq_base", 50000);
  f.f32_tensor("token_embd.weight", {3, 64}, std::vector<float>(3 * 64, 1));
  return f;
}

struct Opened {
  std::string bytes;
  std::unique_ptr<Checkpoint> checkpoint;
  Checkpoint* operator->() const { return checkpoint.get(); }
};
inline Opened open_model(const GgufFile& f, bool keep_16bit = false) {
  Opened o{f.build(), nullptr};
  o.checkpoint = open_gguf(Blob::view(bytes_of(o.bytes), "m.gguf"), {keep_16bit});
  return o;
}
inline std::string open_error(const GgufFile& f) {
  return error_of([&] { open_model(f); });
}

}  // namespace nibble::test
