// What `nibble --version` says.
#pragma once
#include <string>

namespace nibble::cli {

// Version, compiler, build type, CPU features and backends, a line each.
std::string version_text();

}  // namespace nibble::cli
