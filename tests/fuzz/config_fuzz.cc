// The input is each of the JSON files of a directory in turn, the others being well-formed.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "checkpoint/json.h"
#include "checkpoint/reader.h"
#include "touch_checkpoint.h"

namespace {

constexpr std::string_view kConfig =
    R"({"architectures":["LlamaForCausalLM"],"hidden_size":4,"num_hidden_layers":1,)"
    R"("num_attention_heads":2,"intermediate_size":8,"vocab_size":3})";
constexpr std::string_view kIndex = R"({"weight_map":{"a":"a.safetensors"}})";
constexpr std::string_view kTokenizer =
    R"({"added_tokens":[{"id":1,"content":"<s>","special":true}],)"
    R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},)"
    R"("decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0,"<s>":1},"merges":[]}})";
// One tensor "a", F32 [1].
constexpr std::string_view kShard(
    "\x39\0\0\0\0\0\0\0"
    R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   )"
    "\0\0\0\0",
    8 + 57 + 4);

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace nibble;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    parse_json_object(input, "input");
  } catch (const Error&) {
    return 0;  // as each of the four would say
  }
  for (const std::string_view fuzzed : {"config.json", "generation_config.json",
                                        "model.safetensors.index.json", "tokenizer_config.json"}) {
    const Directory directory = {
        "input",
        [&](const std::string& file) -> std::optional<std::string> {
          if (file == fuzzed) return std::string(input);
          if (file == "config.json") return std::string(kConfig);
          if (file == "model.safetensors.index.json") return std::string(kIndex);
          if (file == "tokenizer.json") return std::string(kTokenizer);
          return std::nullopt;
        },
        [&](const std::string& file) -> std::shared_ptr<const Blob> {
          fuzz::expect(file.find('/') == std::string::npos);
          if (file == "model.safetensors") return nullptr;
          return Blob::view({reinterpret_cast<const std::byte*>(kShard.data()), kShard.size()},
                            file);
        }};
    fuzz::attempt([&] { fuzz::touch(*open_hf(directory)); });
  }
  return 0;
}
