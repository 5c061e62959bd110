// The input is model.safetensors, beside a config.json that allows plain and packed weights.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "checkpoint/reader.h"
#include "checkpoint/safetensors.h"
#include "touch_checkpoint.h"

namespace {

constexpr char kConfig[] =
    R"({"architectures":["LlamaForCausalLM"],"hidden_size":4,"num_hidden_layers":1,)"
    R"("num_attention_heads":2,"intermediate_size":8,"vocab_size":3,"quantization_config":)"
    R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{)"
    R"("a":{"targets":["Linear"],"weights":)"
    R"({"num_bits":4,"type":"int","strategy":"group","group_size":32,"symmetric":true}},)"
    R"("b":{"targets":["Linear"],"weights":)"
    R"({"num_bits":4,"type":"int","strategy":"group","group_size":64,"symmetric":false}}}}})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace nibble;
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  const Directory directory = {"input",
                               [](const std::string& file) -> std::optional<std::string> {
                                 return file == "config.json" ? std::optional<std::string>(kConfig)
                                                              : std::nullopt;
                               },
                               [&](const std::string& file) { return Blob::view(bytes, file); }};
  fuzz::attempt([&] {
    parse_safetensors(bytes, "input");  // refuses most inputs, faster than config.json is read
    fuzz::touch(*open_hf(directory));
  });
  return 0;
}
