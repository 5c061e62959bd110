#!/usr/bin/env bash
# Proves ./run and ./test on a machine that has nothing: makes a minimal Debian 12 root with
# debootstrap, clones this repository's HEAD into it, runs both there (and ./run twice), and
# prints times, download sizes and the last lines of each. Needs root and debootstrap; takes the
# Debian mirror, pip configuration and certificates of this machine.
set -euo pipefail

usage() { echo "usage: scripts/clean_room.sh [DIR]   (DIR: where the root is made; default a temporary one, removed at the end)"; }
case ${1:-} in -h | --help) usage; exit 0 ;; esac
[ $# -le 1 ] || { usage >&2; exit 2; }
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/lib.sh
[ "$(id -u)" = 0 ] || die "debootstrap and chroot need root"
command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"

root=${1:-$(mktemp -d)}
[ $# = 1 ] || trap 'rm -rf --one-file-system "$root"' EXIT
[ ! -e "$root/etc" ] || die "$root is not empty"
# shellcheck disable=SC2016  # apt's own variables
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Codename: bookworm' |
  head -n 1)
mkdir -p "$root"
start_log "$root.log"
step "making a Debian 12 root" debootstrap --variant=minbase bookworm "$root" "$mirror"

# The machine's own way to the registries, nothing else of it.
copy() { [ ! -e "$1" ] || cp -rL --parents "$1" "$root"; }
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf "$HOME/.config/pip" \
  /usr/local/share/ca-certificates $(grep -lsiE '^Acquire::(Check|http|https)' /etc/apt/apt.conf \
    /etc/apt/apt.conf.d/*); do
  copy "$file"
done
git clone -q --no-local . "$root/nibble"
mapfile -t env < <(env | grep -E '^(PIP_|[A-Za-z]+_proxy=|[A-Z]+_PROXY=|SSL_CERT_)' || true)

# Its own mounts, which go with the command: nothing to unmount, nothing to delete by mistake.
# shellcheck disable=SC2016  # expanded by the inner shell
inside() {
  unshare --mount --propagation private bash -c '
    mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$@"' "$root" \
    "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "${env[@]}" \
    bash -c "cd /nibble && $1" </dev/null
}
received() { awk 'NR > 2 && $1 != "lo:" { s += $2 } END { print int(s / 1e6) }' /proc/net/dev; }

try() {
  local start=$SECONDS before rc=0
  before=$(received)
  say "== $*"
  inside "$*" || rc=$?
  say "== $*: exit $rc, $((SECONDS - start)) s, $(($(received) - before)) MB received"
  return "$rc"
}

failed=0
try ./run || failed=1
try ./run "What is the capital of France?" || failed=1
try ./test || failed=1
say "disk used by the root: $(du -sm --one-file-system "$root" | cut -f 1) MB"
exit $failed
