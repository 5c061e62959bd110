#!/bin/sh
# Before a compiler's command: llama.cpp's kernels for AMX by clang. GCC 12's tile intrinsics do not
# order memory; it drops the stores of the tile configuration, and the first prompt is an illegal
# instruction.
set -eu
case "$*" in
  *amx/mmq.cpp*)
    shift
    exec clang++-16 "$@" -fno-openmp -UGGML_USE_OPENMP
    ;;
esac
exec "$@"
