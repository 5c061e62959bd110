// How a linear operation takes its input (docs/design.md, "Activations").
#pragma once
#include <cstdint>
#include <string_view>

namespace nibble {

enum class Activations : std::uint8_t {
  Int16,  // 16-bit fixed point, one fp32 scale per 64 columns (largest magnitude / 32512)
  Int8,   // the same with 8 bits (largest magnitude / 127)
  Fp32,   // not rounded: the reference of the CPU backend
  // fp16, one power of two a row as its scale, sums in fp32 in an order of the device's choice:
  // for steps of prefill where Backend::has_half(). Attention and the delta rule then take the
  // device's order and precision too. A row's bits depend on neither M nor its company.
  Half,
};

constexpr std::string_view activations_name(Activations a) {
  constexpr std::string_view names[] = {"int16", "int8", "fp32", "half"};
  return names[static_cast<int>(a)];
}

}  // namespace nibble
