// The input is a GGUF file.
#include <cstddef>
#include <cstdint>
#include <span>

#include "checkpoint/reader.h"
#include "touch_checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace nibble;
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  bool requantised = false;
  fuzz::attempt([&] {
    const auto checkpoint = open_gguf(Blob::view(bytes, "input"), {});
    requantised = !checkpoint->notices().empty();
    fuzz::touch(*checkpoint);
  });
  if (requantised)
    fuzz::attempt(
        [&] { fuzz::touch(*open_gguf(Blob::view(bytes, "input"), {.keep_16bit = true})); });
  return 0;
}
