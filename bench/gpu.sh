#!/usr/bin/env bash
# Nibble on a GPU machine without network: the checks and figures of the CUDA backend, in stages
# of less than 8 minutes. On the machine that builds:
#   bench/gpu.sh carry      build/ -> carry/: programs, the libraries they need, their loader
# and on the GPU machine, in the root of the tree:
#   bench/gpu.sh STAGE...   first verify sweep sanitize ops oracles models fused profile
#                           model-27b model-35b
# Output goes to the screen and, where $OUT is set, to $OUT/STAGE.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
. bench/carried.sh

stage_carry() { carry_programs nibble fused_cuda tests/test_gpu tests/test_ops; }

stage_device() {
  nvidia-smi
  run nibble --version
}
# The smallest thing first: one oracle, a few shapes.
stage_first() {
  stage_device
  run test_gpu --gtest_filter='*tiny_llama'
  run nibble verify --device cuda --shape 256x2048,8704x5120 --activations int16
  run fused_cuda 256x2048 8704x5120 34816x5120
  NIBBLE_CUDA_OVERLAP=0 run fused_cuda 256x2048 8704x5120 34816x5120
}
stage_verify() { with=(timeout 150); run nibble verify --device cuda --quick; }
stage_sweep() { timeout 470 bash bench/gpu.sh sweep-now || echo "sweep: stopped, exit $?"; }
stage_sweep-now() { run nibble verify --device cuda --activations int16; }
stage_oracles() { with=(timeout 200); run test_gpu; }
# Every operation against its reference and the CPU's bits.
stage_ops() { with=(timeout 200); run test_ops; }
# The trained models: the perplexity that bench/results/quality.txt has for the CPU, to the last digit.
stage_models() {
  with=(timeout 100)
  local model want
  while read -r model want; do
    run nibble perplexity "models/$model" --text tests/data/kjv/val.txt --documents --windows 24 \
      --device cuda --json </dev/null | grep "$want" || { echo "not $want"; return 1; }
  done <<<"kjv-qwen3_5 20.82343808558385
kjv-qwen3_5-moe 16.978534354467882"
}
stage_fused() { with=(timeout 60); run fused_cuda; }
# The reduced sweep: every kernel, every tail, K <= 1152.
stage_sanitize() {
  local tool sanitizer some tests
  some='DeltaNet.AS*:*DeltaNetTest*/2:*DeltaNetTest*/3:*MoeTest*/6:*MoeTest*/9:Gated*:Embedding*:'
  some+='Router*:*AttentionTest*/3:Linear.ManyRows'
  sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  for tool in memcheck racecheck synccheck initcheck; do
    echo "== $tool"
    with=(timeout 100 "$sanitizer" --tool "$tool" --error-exitcode 9)
    run nibble verify --device cuda --shape 67x1152,5x640,16x128,33x96 --activations int16 |
      tail -3 || echo "exit $?"
    tests=(test_gpu '--gtest_filter=*DecodesInCompany*:*HasTheCpusBits*')
    [ "$tool" != racecheck ] || tests=(test_ops "--gtest_filter=$some")  # whole models take hours
    run "${tests[@]}" 2>&1 | tail -3 || echo "exit $?"
  done
}
# Every kernel of the first step, which is not yet a graph: ncu fails on this program's graphs.
stage_profile() {
  local config test csv=${OUT:-/tmp}/profile.csv
  for config in qwen3.6-27b qwen3.6-35b-a3b; do
    for test in "--prompt 0 --generate 16" "--prompt 2048 --generate 0"; do
      echo "== $config, 4 layers, $test"
      with=(timeout 100 ncu --clock-control none --cache-control none -c 75 --csv --log-file "$csv"
        --metrics gpu__time_duration.sum)
      # shellcheck disable=SC2086
      run nibble bench model --config "$config" --layers 4 --random-weights --device cuda \
        --repeat 1 $test >/dev/null 2>&1 || echo "exit $?"
      python3 bench/kernel_times.py "$csv"
    done
  done
}
model() {
  with=(timeout 200)
  run nibble bench model --config "$1" --random-weights --device cuda --generate 128 --prompt 2048 \
    --depth 128,4096 --repeat 3 --threads 0
}
stage_model-27b() { model qwen3.6-27b; }
stage_model-35b() { model qwen3.6-35b-a3b; }

stages "$@"
