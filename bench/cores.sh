#!/usr/bin/env bash
# Nibble on a machine of many cores without network (the lent GPU's host: 16 cores of a Sapphire
# Rapids): its instruction sets' tests and figures, beside llama.cpp. On the machine that builds:
#   bench/cores.sh carry    build/ -> carry/: programs, tests and their data, their loader, and
#                           llama-bench for that processor (after bench/peers/llama_cpp.sh)
# and there, in the root of the tree:
#   bench/cores.sh STAGE... peers amx fused check (7 minutes in all); model
# Output goes to the screen and, where $OUT is set, to $OUT. THREADS: all it has, by default.
set -euo pipefail
cd "$(dirname "$0")/.."
. bench/carried.sh
out=${OUT:-/tmp}
all=${THREADS:-$(nproc)}
some=$(for ((n = 1; n < all; n *= 2)); do printf '%s%d' "${some+,}" $n && some=; done)  # 1,2,4,8

stage_carry() {
  local peer=build-peers/llama.cpp-sapphirerapids on=() feature
  carry_programs nibble tests/test_ops tests/test_verify
  for feature in SSE42 AVX AVX2 FMA F16C BMI2 AVX512 AVX512_{VBMI,VNNI,BF16} AMX_{TILE,INT8,BF16}; do
    on+=("-DGGML_$feature=ON")
  done
  cmake -S build-peers/src/vendor/llama.cpp -B "$peer" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF "${on[@]}" -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DLLAMA_BUILD_UI=OFF "-DCMAKE_CXX_COMPILER_LAUNCHER=$PWD/bench/peers/amx_compiler.sh"
  ninja -C "$peer" llama-bench
  carry_files "$peer/bin/llama-bench"
  build-peers/venv/bin/pip download -q --no-deps -d "$carry" gguf
}

# The same tests as ./test's, on every instruction set of this machine.
stage_check() {
  with=(timeout 120)
  run test_verify --gtest_brief=1
  run nibble verify --quick | tail -n 4
  run test_ops --gtest_brief=1
}
stage_fused() {
  run nibble bench fused --threads "1,$all" --shape 34816x5120 --device cpu --repeat 7
}
# The matrix unit beside VNNI, for prompts.
stage_amx() {
  local device mode
  gguf qwen3.5-0.8b
  for mode in int16 int8; do
    for device in cpu cpu:avx512-vnni; do
      echo "$mode $device"
      run nibble bench model "$gguf" --prompt 256 --generate 0 --repeat 2 --threads "1,$all" \
        --device "$device" --activations "$mode" | grep -v memory:
    done
  done
}
# The identical file in both; made here, for it is too large to carry.
gguf() {
  gguf=/tmp/$1.Q4_0.gguf
  [ ! -e "$gguf" ] || return 0
  pip install -q --no-deps --no-index --target /tmp/site "$carry"/gguf-*.whl
  PYTHONPATH=/tmp/site python3 bench/peers/make_gguf.py "$1" "$gguf"
}
# PROGRAM: /tmp/PROGRAM runs it as run() does.
command_of() {
  printf '#!/bin/sh\nexec %s "%s/bin/%s" "$@"\n' "${loader[*]}" "$carry" "$1" >"/tmp/$1"
  chmod +x "/tmp/$1"
}
# SHAPE THREADS ROUNDS [ACTIVATIONS]
peer() {
  local mode=${4:-int16}
  python3 bench/peers/compare_llama_cpp.py "$gguf" --threads "$2" --rounds "$3" --generate 24 \
    --llama-bench /tmp/llama-bench --nibble /tmp/nibble \
    --nibble-args "--repeat 1 --activations $mode" \
    --out "$out/llama_cpp-$1.Q4_0-$mode-$(nproc)cores-${2//,/-}.json" 2>/dev/null
}
stage_peers() {
  local shape
  run nibble --version
  lscpu | grep -E 'Model name|^CPU\(s\)'
  run nibble bench bandwidth --seconds 1
  command_of nibble
  command_of llama-bench
  for shape in ${SHAPES:-llama-3.2-1b qwen3.5-0.8b smollm2-135m}; do
    echo "$shape"
    gguf "$shape"
    peer "$shape" "$all" 3
    peer "$shape" "$all" 3 int8
    peer "$shape" "$some" 2
  done
}
stage_model() {
  run nibble bench model --config qwen3.6-35b-a3b --random-weights --prompt 512 --generate 64 --repeat 2
}

stages "$@"
