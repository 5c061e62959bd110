#!/usr/bin/env bash
# Builds llama.cpp's tools for comparison: its source comes inside the Python index's source
# package llama-cpp-python, is built outside git in build-peers/, and is never part of Nibble.
# Afterwards: build-peers/llama.cpp/bin/{llama-bench,llama-perplexity,llama-quantize}.
# About 12 minutes on 2 cores; does nothing when that is done. Needs ./test's packages (as root).
set -euo pipefail
[ $# = 0 ] || { echo "usage: bench/peers/llama_cpp.sh   (no arguments)" >&2; exit 2; }
cd "$(dirname "$(readlink -f "$0")")/../.."
. scripts/lib.sh

package=llama-cpp-python==0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
tools=(llama-bench llama-perplexity llama-quantize)
out=build-peers/llama.cpp

start_log build-peers/llama_cpp.log
require_packages "${build_packages[@]}" python3-pip python3-venv
require_space build-peers 1500 "llama.cpp"

# pip asks a source package for its metadata, which takes the package's own build tool.
get_source() {
  rm -rf build-peers/src build-peers/download
  /usr/bin/python3 -m venv build-peers/venv
  build-peers/venv/bin/pip install -q scikit-build-core
  build-peers/venv/bin/pip download --no-deps --no-binary=:all: --no-build-isolation \
    -d build-peers/download "$package"
  echo "$sha256  $(echo build-peers/download/*.tar.gz)" | sha256sum -c -
  mkdir build-peers/src.part
  tar -xzf build-peers/download/*.tar.gz -C build-peers/src.part --strip-components=1
  mv build-peers/src.part build-peers/src
  rm -r build-peers/download
}

if [ ! -d build-peers/src ]; then
  rm -rf build-peers/src.part
  step "getting $package" bash -euo pipefail -c "$(declare -f get_source)
    package=$package sha256=$sha256; get_source" ||
    die "could not get $package: is a Python package index reachable?"
fi
step "configuring $out" cmake -S build-peers/src/vendor/llama.cpp -B "$out" -G Ninja \
  -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF || exit 1
step "building ${tools[*]}" ninja -C "$out" "${tools[@]}" || exit 1
say "built: $(printf "$out/bin/%s " "${tools[@]}")"
