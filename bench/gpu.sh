#!/usr/bin/env bash
# Nibble on a GPU machine without network: the checks and figures of the CUDA backend, in stages
# of less than 8 minutes. On the machine that builds:
#   bench/gpu.sh carry      build/ -> carry/: programs, the libraries they need, their loader
# and on the GPU machine, in the root of the tree:
#   bench/gpu.sh STAGE...   first verify sweep sanitize oracles fused model-27b model-35b [device]
# Output goes to the screen and, where $OUT is set, to $OUT/STAGE.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
carry=carry

# A program of carry/, by its own loader and libraries where the machine's are too old.
run() {
  local program=$carry/bin/$1
  shift
  if [ -z "${direct:-}" ]; then
    if "$carry/bin/nibble" --version >/dev/null 2>&1; then direct=yes; else direct=no; fi
  fi
  if [ "$direct" = yes ]; then "$program" "$@"
  else
    "$carry/lib/ld-linux-x86-64.so.2" \
      --library-path "$carry/lib:/usr/lib/x86_64-linux-gnu:/usr/local/nvidia/lib64:/usr/lib64" "$program" "$@"
  fi
}

stage_carry() {
  local build=build
  rm -rf "$carry" && mkdir -p "$carry/bin" "$carry/lib"
  ninja -C "$build" nibble fused_cuda test_gpu
  cp "$build/nibble" "$build/fused_cuda" "$build/tests/test_gpu" "$carry/bin/"
  strip "$carry"/bin/*
  for p in "$carry"/bin/*; do ldd "$p" | awk '$3 ~ /^\// {print $3} $1 ~ /^\// {print $1}'; done |
    sort -u | xargs -I{} cp -L {} "$carry/lib/"
  du -sh "$carry"
}

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
}
stage_verify() { run nibble verify --device cuda --quick; }
stage_sweep() { timeout 470 bash bench/gpu.sh sweep-now || echo "sweep: stopped, exit $?"; }
stage_sweep-now() { run nibble verify --device cuda --activations int16; }
stage_oracles() { run test_gpu; }
stage_fused() { run fused_cuda; }
# The reduced sweep: every kernel, every tail, K <= 1152.
stage_sanitize() {
  local tool sanitizer
  sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  for tool in memcheck racecheck synccheck initcheck; do
    echo "== $tool"
    timeout 110 "$sanitizer" --tool "$tool" --error-exitcode 9 "$carry/bin/nibble" \
      verify --device cuda --shape 67x1152,5x640,16x128,33x96 --activations int16 || echo "exit $?"
    timeout 110 "$sanitizer" --tool "$tool" --error-exitcode 9 "$carry/bin/test_gpu" \
      --gtest_filter='GpuModel.DecodesInCompany*' 2>&1 | tail -5 || true
  done
}
model() {
  run nibble bench model --config "$1" --random-weights --device cuda --generate 128 --prompt 2048 \
    --depth 128,4096 --repeat 3 --threads 0
}
stage_model-27b() { model qwen3.6-27b; }
stage_model-35b() { model qwen3.6-35b-a3b; }

[ $# -gt 0 ] || { sed -n 2,8p bench/gpu.sh; exit 2; }
failed=0
for stage in "$@"; do
  echo "=== $stage"
  begin=$SECONDS
  ("stage_$stage") 2>&1 | tee "${OUT:-/tmp}/$stage.txt" || { failed=1; echo "=== $stage FAILED"; }
  echo "=== $stage: $((SECONDS - begin)) s"
done
exit "$failed"
