# shellcheck shell=bash
# Sourced by the benchmarks of lent machines: programs built here run there, where nothing can be
# installed, with this machine's loader and libraries if theirs are too old.
carry=carry

# PROGRAM...: targets of build/, stripped, with the libraries they need.
carry_programs() {
  local p
  rm -rf "$carry" && mkdir -p "$carry/bin" "$carry/lib"
  ninja -C build "$@"
  pwd >"$carry/root"
  for p in "$@"; do carry_files "build/$p"; done
}
carry_files() {
  local p
  for p in "$@"; do
    strip -o "$carry/bin/${p##*/}" "$p" && gzip -f "$carry/bin/${p##*/}"
    ldd "$p" | awk '$3 ~ /^\// {print $3} $1 ~ /^\// {print $1}' | xargs -I{} cp -Lu {} "$carry/lib/"
  done
  du -sh "$carry"
}

# [with=TOOL...] run PROGRAM ARGUMENT...: by itself, or under a tool given in the array `with`.
run() {
  local program=$carry/bin/$1
  shift
  gunzip -qf "$carry"/bin/*.gz 2>/dev/null || true
  if [ -z "${loader+set}" ]; then
    loader=()
    "$carry/bin/nibble" --version >/dev/null 2>&1 || loader=("$carry/lib/ld-linux-x86-64.so.2"
      --library-path "$carry/lib:/usr/lib/x86_64-linux-gnu:/usr/local/nvidia/lib64:/usr/lib64")
  fi
  "${with[@]}" "${loader[@]}" "$program" "$@"
}
with=()

# STAGE...: runs them all, whatever the others did.
stages() {
  local stage begin failed=0
  [ $# -gt 0 ] || { sed -n '2,/^set/{/^#/p}' "$0"; return 2; }
  # Tests look for their data where they were built.
  if [ -f "$carry/root" ] && [ ! -e "$(cat "$carry/root")" ]; then
    mkdir -p "$(dirname "$(cat "$carry/root")")"
    ln -s "$PWD" "$(cat "$carry/root")"
  fi
  for stage in "$@"; do
    echo "=== $stage"
    begin=$SECONDS
    (set -e; "stage_$stage") 2>&1 | tee "${OUT:-/tmp}/$stage.txt" || { failed=1; echo "=== $stage FAILED"; }
    echo "=== $stage: $((SECONDS - begin)) s"
  done
  return "$failed"
}
