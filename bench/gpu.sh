#!/usr/bin/env bash
# Nibble on a GPU machine without network: the checks and figures of the CUDA backend, in stages
# of less than 8 minutes. On the machine that builds:
#   bench/gpu.sh carry      build/ -> carry/: programs, the libraries they need, their loader
#   bench/gpu.sh carry-trace    then: build-trace/ -> carry/, the program that traces its launches
#   bench/gpu.sh carry-smollm2  its file -> carry-smollm2/{0,1,2}, each as much as one call brings
#   bench/gpu.sh carry-peer     llama.cpp (its source: bench/peers/llama_cpp.sh) for sm_90 -> carry-peer/{0,1}
# and on the GPU machine, in the root of the tree:
#   bench/gpu.sh STAGE...   first verify sweep stress stress-int16 stress-int8 sanitize ops oracles
#                           models fused ahead profile trace model-27b model-35b; peer-27b peer-35b
# Output goes to the screen and, where $OUT is set, to $OUT/STAGE.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
. bench/carried.sh
. scripts/lib.sh

stage_carry() { carry_programs nibble fused_cuda tests/test_gpu tests/test_ops; }
stage_carry-trace() {
  cmake -S . -B build-trace -G Ninja -DCMAKE_BUILD_TYPE=Release -DNIBBLE_TESTS=OFF \
    -DNIBBLE_CUDA=ON -DNIBBLE_CUDA_TRACE=ON -DCMAKE_CUDA_ARCHITECTURES=90a-real
  ninja -C build-trace nibble
  ln -f build-trace/nibble build-trace/nibble-trace
  mkdir -p "$carry"/{bin,lib}
  carry_files build-trace/nibble-trace
}

stage_carry-smollm2() {
  local i parts=carry-smollm2
  rm -rf "$parts" && mkdir -p "$parts"/{0,1,2}
  for i in 0 1 2; do
    split -n "$((i + 1))/3" "models/$model_name" >"$parts/$i/part"
  done
}
# Once all three have been carried: test_gpu finds it.
join_smollm2() {
  [ ! -e carry-smollm2/2/part ] || cat carry-smollm2/{0,1,2}/part >"models/$model_name"
}
stage_carry-peer() {
  local build=build-peers/llama.cpp-cuda i
  cmake -S build-peers/src/vendor/llama.cpp -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90 -DGGML_NATIVE=OFF -DBUILD_SHARED_LIBS=OFF \
    -DGGML_CUDA_NCCL=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF >/dev/null
  ninja -C "$build" llama-bench llama-batched-bench | tail -1
  rm -rf carry-peer && mkdir -p carry-peer/{0,1}
  # One dictionary for both: they are nearly the same.
  tar -C "$build/bin" -c llama-bench llama-batched-bench |
    xz --lzma2=preset=6,dict=192MiB >carry-peer/all
  for i in 0 1; do split -n "$((i + 1))/2" carry-peer/all >"carry-peer/$i/part"; done
  rm carry-peer/all
  cp -L "$(ldd "$build/bin/llama-bench" | awk '/libgomp/{print $3}')" carry-peer/1/
  build-peers/venv/bin/pip download -q --no-deps -d carry-peer/1 gguf
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
  NIBBLE_CUDA_OVERLAP=0 run fused_cuda 256x2048 8704x5120 34816x5120
}
stage_verify() { with=(timeout 150); run nibble verify --device cuda --quick; }
stage_sweep() { timeout 470 bash bench/gpu.sh sweep-now || echo "sweep: stopped, exit $?"; }
stage_sweep-now() { run nibble verify --device cuda --activations int16; }
# Every call has the CPU's bits while others hold the device's multiprocessors.
stage_stress() {
  with=(timeout 300)
  run nibble verify --device cuda --explain
  run nibble verify --device cuda --stress 100000 --activations int16 \
    --shape 256x2048,8704x5120,34816x5120,5120x6144,5120x17408,513x2048
}
# The same for every shape of the sweep.
stress_all() { with=(timeout 450) && run nibble verify --device cuda --stress 1000 --activations "$1"; }
stage_stress-int16() { stress_all int16; }
stage_stress-int8() { stress_all int8; }
stage_oracles() {
  with=(timeout 200)
  join_smollm2
  run test_gpu
}
# Every operation against its reference and the CPU's bits.
stage_ops() { with=(timeout 200); run test_ops; }
# The trained models: the perplexity that bench/results/quality.txt has for the CPU, to the last digit.
stage_models() {
  with=(timeout 100)
  local model want
  while read -r model want; do
    run nibble perplexity "models/$model" --text tests/data/kjv/val.txt --documents --windows 24 \
      --device cuda --exact-prefill --json </dev/null | grep "$want" || { echo "not $want"; return 1; }
  done <<<"kjv-qwen3_5 20.823410455825968
kjv-qwen3_5-moe 16.978527783214567"
}
# Beside the framework's own INT4 kernel and cuBLAS.
stage_fused() {
  with=(timeout 60)
  run fused_cuda
  timeout 100 python3 bench/peers/torch_linear.py || echo "torch: exit $?"
}
# What it gives that warps ask for weights before they wait: KiB a block.
stage_ahead() {
  local kib
  with=(timeout 60)
  for kib in 0 64 128 192 256; do
    echo "== $kib KiB"
    NIBBLE_CUDA_AHEAD=$kib run fused_cuda 34816x5120 16384x5120 8704x5120 5120x6144,1,plain \
      5120x17408,1,plain 12288x2048 256x2048
  done
}
# The reduced sweep: every kernel, every tail, K <= 1152.
stage_sanitize() {
  local tool sanitizer some tests
  some='DeltaNet.AS*:*DeltaNetTest*/2:*DeltaNetTest*/3:*MoeTest*/6:*MoeTest*/9:Gated*:Embedding*:'
  some+='Router*:*AttentionTest*/3:Linear.ManyRows:Linear.ShortPieces:*LinearConvTest*/0:GemvPairs.Conv*:'
  some+='Half.EveryTail:Half.ManyRows:Half.Norms*:*MoeHalf*/0:*DeltaNetHalf*/0:HalfAttention.Comp*'
  sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  for tool in memcheck racecheck synccheck initcheck; do
    echo "== $tool"
    with=(timeout 200 "$sanitizer" --tool "$tool" --error-exitcode 9)
    run nibble verify --device cuda --shape 67x1152,5x640,16x128,33x96 --activations int16 |
      tail -3 || echo "exit $?"
    tests=(test_gpu '--gtest_filter=*DecodesInCompany*:*HasTheCpusBits*')
    [ "$tool" != racecheck ] || tests=(test_ops "--gtest_filter=$some")  # whole models take hours
    run "${tests[@]}" 2>&1 | named_races || echo "exit $?"
  done
}
# The last lines, after the places that the tool names, the most frequent first.
named_races() {
  awk '/access at /{sub(/.*access at /, ""); sub(/\+0x.*/, ""); ++n[$0]}
    {last[NR % 3] = $0}
    END{for (k in n) print n[k], k | "sort -rn | head"; close("sort -rn | head")
        for (i = NR - 2; i <= NR; ++i) if (i > 0) print last[i % 3]}'
}
# Every kernel of the first step, which is not yet a graph: ncu fails on this program's graphs.
stage_profile() {
  local config
  for config in qwen3.6-27b qwen3.6-35b-a3b; do
    profile_steps "$config" "--prompt 0 --generate 16"
    profile_steps "$config" "--prompt 2048 --generate 0"
  done
}
profile_steps() {
  local csv=${OUT:-/tmp}/profile.csv
  echo "== $1, 4 layers, $2"
  local with=(timeout 100 ncu --clock-control none --cache-control none -c 140 --csv --log-file "$csv"
    --metrics gpu__time_duration.sum)
  # shellcheck disable=SC2086
  run nibble bench model --config "$1" --layers 4 --random-weights --device cuda \
    --repeat 1 $2 >/dev/null 2>&1 || echo "exit $?"
  python3 bench/kernel_times.py "$csv"
}
# Where a token's time goes: every launch of the replayed graphs, in order.
stage_trace() {
  local config csv
  with=(timeout 200)
  for config in qwen3.6-27b qwen3.6-35b-a3b; do
    echo "== $config"
    csv=${OUT:-/tmp}/trace-$config.csv
    NIBBLE_CUDA_TRACE=$csv run nibble-trace bench model --config "$config" --random-weights \
      --device cuda --prompt 0 --generate 32 --depth 128 --repeat 1 --threads 0
    python3 bench/trace_table.py "$csv"
  done
}
# Prompts in fp16: operations against their reference, the whole models, every kernel.
stage_half() {
  local config
  with=(timeout 120)
  run test_ops --gtest_filter='*Half*' --gtest_brief=1
  for config in qwen3.6-27b qwen3.6-35b-a3b; do
    run nibble bench model --config "$config" --random-weights --device cuda --generate 0 \
      --prompt 2048 --repeat 3 --threads 0
    profile_steps "$config" "--prompt 2048 --generate 0"
  done
}
model() {
  with=(timeout 200)
  local of=(--config "$1" --random-weights)
  [ ! -f "$1" ] || of=("$1")
  run nibble bench model "${of[@]}" --device cuda --generate 128 --prompt 2048 --depth 128,4096 \
    --batch 1,8 --repeat 3 --threads 0
}
stage_model-27b() { model qwen3.6-27b; }
stage_model-35b() { model qwen3.6-35b-a3b; }
unpack_peer() {
  [ ! -d /tmp/llama ] || return 0
  mkdir /tmp/llama
  cat carry-peer/{0,1}/part | tar -C /tmp/llama -xJ
  cp carry-peer/1/libgomp.so.1 /tmp/llama/
  pip install -q --no-deps --no-index --target /tmp/site carry-peer/1/*.whl
}
# Its figures and ours, one after the other.
peer() {
  local file=/tmp/$1.gguf bin=/tmp/llama
  unpack_peer
  export LD_LIBRARY_PATH=/tmp/llama:${LD_LIBRARY_PATH:-/usr/local/cuda/lib64}
  PYTHONPATH=/tmp/site python3 bench/peers/make_gguf.py "$1" "$file"
  timeout 150 "$bin/llama-bench" -m "$file" -fa 1 -ngl 99 -p 2048 -n 128 -d 0,4096 -r 3
  timeout 100 "$bin/llama-batched-bench" -m "$file" -fa 1 -ngl 99 -npp 128 -ntg 64 -npl 8 -c 4096
  model "$file"  # the identical file, which is warm: its loading, too
  rm "$file"
  model "$1"
}
stage_peer-27b() { peer qwen3.6-27b; }
stage_peer-35b() { peer qwen3.6-35b-a3b; }

stages "$@"
