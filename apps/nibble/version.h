// What `nibble --version` says.
#pragma once
#include <string>

namespace nibble::cli {

// The git commit it was built from, "-dirty" with local changes; "unknown" without git.
std::string commit();

// Version, commit, compiler, build type, CPU features and backends, a line each.
std::string version_text();

}  // namespace nibble::cli
