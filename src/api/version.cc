#include "nibble/nibble.hpp"

namespace nibble {

std::string_view version() { return NIBBLE_VERSION; }

}  // namespace nibble
