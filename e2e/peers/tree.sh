#!/usr/bin/env bash
# A Debian sid in a folder, with the other programs that write and read checkpoints: CRIU and crit,
# checkpointctl, and a containerd that checkpoints through CRIU. The machine's own packages stay as they are.
#
#   tree.sh make TREE                    some minutes, once; nothing when it is there
#   tree.sh enter TREE FOLDER COMMAND..  runs COMMAND with TREE as its root and FOLDER at its own path
#
# Only the mount namespace is a new one: pids, network and cgroups are the caller's.
set -euo pipefail

packages=(criu python3-pycriu checkpointctl containerd runc containernetworking-plugins iproute2 iptables)

# The mirror of this machine's own packages is one that it reaches.
mirror() {
  local uri
  uri=$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 '/debian/*$' || true)
  echo "${uri:-http://deb.debian.org/debian}"
}

make() {
  local tree=$1.new # has its name once it is whole
  [[ ! -e $1 ]] || return 0
  rm -rf --one-file-system "$tree"
  mkdir -p "$tree"
  debootstrap --variant=minbase sid "$tree" "$(mirror)"
  printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d" # no install starts a service
  chmod +x "$tree/usr/sbin/policy-rc.d"
  local nothing
  nothing=$(mktemp -d)
  # A mirror that lags behind, or keeps one day, is as good.
  echo 'Acquire::Check-Valid-Until "false";' >"$tree/etc/apt/apt.conf.d/90stasis"
  enter "$tree" "$nothing" apt-get update -q
  enter "$tree" "$nothing" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -qy --no-install-recommends "${packages[@]}"
  rmdir "$nothing"
  mv "$tree" "$1"
}

enter() {
  mkdir -p "$2"
  unshare --mount --propagation private bash -euc '
    tree=$1 folder=$2
    shift 2
    mount --bind "$tree" "$tree"
    mount --types proc proc "$tree/proc"
    mount --rbind /sys "$tree/sys"
    mount --rbind /dev "$tree/dev"
    for private in tmp run; do mount --types tmpfs tmpfs "$tree/$private"; done
    cp /etc/resolv.conf "$tree/etc/resolv.conf"
    mkdir -p "$tree$folder"
    mount --rbind "$folder" "$tree$folder"
    cd "$tree"
    # CRIU and runc ask for a root that is a mount, and for one that hides nothing (chroot(2) is neither).
    pivot_root . mnt
    cd /
    umount --lazy /mnt
    exec "$@"' enter "$@"
}

case ${1:-} in
  make) make "$2" ;;
  enter) shift && enter "$@" ;;
  *) sed -n '5,6s/^# *//p' "$0" >&2; exit 2 ;;
esac
