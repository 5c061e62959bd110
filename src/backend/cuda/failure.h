// Throws Error(text), from files that are compiled without fmt.
#pragma once
#include <string>

namespace nibble::NIBBLE_CUDA_NS {
[[noreturn]] void device_failure(const std::string& text);
}
