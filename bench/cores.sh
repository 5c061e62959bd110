#!/usr/bin/env bash
# Nibble on a machine of many cores without network (the lent GPU's host: 16 cores of a Sapphire
# Rapids): its instruction sets' tests and figures, beside llama.cpp. On the machine that builds:
#   bench/cores.sh carry    build/ -> carry/: programs, tests and their data, their loader, and
#                           llama-bench for that processor (after bench/peers/llama_cpp.sh)
# and there, in the root of the tree, each in less than 8 minutes:
#   bench/cores.sh STAGE... check fused peers model
# Output goes to the screen and, where $OUT is set, to $OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
. bench/carried.sh
out=${OUT:-/tmp}
threads=1,2,4,8,16

stage_carry() {
  local peer=build-peers/llama.cpp-sapphirerapids on=() feature
  carry_programs nibble tests/test_ops tests/test_verify
  for feature in SSE42 AVX AVX2 FMA F16C BMI2 AVX512 AVX512_{VBMI,VNNI,BF16} AMX_{TILE,INT8,BF16}; do
    on+=("-DGGML_$feature=ON")
  done
  cmake -S build-peers/src/vendor/llama.cpp -B "$peer" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF "${on[@]}" -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DLLAMA_BUILD_UI=OFF
  ninja -C "$peer" llama-bench
  carry_files "$peer/bin/llama-bench"
}

# The same tests as ./test's, on every instruction set of this machine.
stage_check() {
  lscpu | grep -E 'Model name|^CPU\(s\)'
  run nibble --version
  run nibble bench bandwidth
  run test_ops --gtest_brief=1
  run test_verify --gtest_brief=1
  run nibble verify --quick
}
stage_fused() {
  run nibble bench fused --threads 1,16 --device cpu:avx2,cpu:avx512,cpu:avx512-vnni
  run nibble bench fused --threads "$threads" --shape 34816x5120 --device cpu
  run nibble bench fused --threads 16 --rows 8 --device cpu:avx512-vnni,cpu
}
# The identical file in both; made here, for it is too large to carry.
stage_peers() {
  local shape
  for shape in llama-3.2-1b qwen3.5-0.8b; do
    python3 bench/peers/make_gguf.py "$shape" "/tmp/$shape.Q4_0.gguf"
    python3 bench/peers/compare_llama_cpp.py "/tmp/$shape.Q4_0.gguf" --rounds 3 --threads "$threads" \
      --llama-bench "$carry/bin/llama-bench" --nibble "$carry/bin/nibble" \
      --out "$out/llama_cpp-$shape.Q4_0-int16-sapphirerapids.json"
  done
}
stage_model() {
  run nibble bench model --config qwen3.6-35b-a3b --random-weights --prompt 512 --generate 64 --repeat 2
}

stages "$@"
