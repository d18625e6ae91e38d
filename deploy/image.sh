#!/usr/bin/env bash
# The image of the Dockerfile, where there is neither a Docker engine nor a registry that has Debian: by buildah, on
# a Debian that debootstrap makes from this machine's own mirror. Usage: image.sh STORE REFERENCE ARCHIVE
#
#   STORE      a folder that is kept: the next time there is a Debian
#   REFERENCE  what the image is called
#   ARCHIVE    the file that it becomes, for `docker load`, `ctr images import` and `skopeo copy`
set -euo pipefail
store=$1 reference=$2 archive=$3
base=docker.io/library/debian # as the Dockerfile calls it

build() { buildah --root "$store/storage" --runroot "$store/run" "$@"; }

# It leaves its storage mounted, where nobody could take it away.
trap 'umount --quiet "$store/storage/overlay" || true' EXIT

# The mirror of this machine's own packages is one that it reaches.
mirror() {
  local uri
  uri=$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 '/debian/*$' || true)
  echo "${uri:-http://deb.debian.org/debian}"
}

make_base() {
  local container tree=$store/debian
  rm -rf --one-file-system "$tree"
  mkdir -p "$tree"
  debootstrap --variant=minbase bookworm "$tree" "$(mirror)"
  # A mirror that lags behind, or keeps one day, is as good.
  echo 'Acquire::Check-Valid-Until "false";' >"$tree/etc/apt/apt.conf.d/90stasis"
  rm -rf "$tree"/var/cache/apt/archives/*.deb
  container=$(build from scratch)
  build add --quiet "$container" "$tree" /
  build config --cmd bash "$container"
  build commit --quiet --rm "$container" "$base:bookworm"
  build tag "$base:bookworm" "$base:bookworm-slim"
  rm -rf --one-file-system "$tree"
}

build inspect --type image "$base:bookworm-slim" >/dev/null 2>&1 || make_base
# In a chroot: it needs no runtime, no network of its own and no cgroups.
build bud --pull-never --isolation chroot --build-arg SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" --tag "$reference" .
# What does not start here would take nodes' kubelets out of service there.
container=$(build from --pull-never "$reference")
for program in stasis stasisd stasis-node; do
  build run --isolation chroot "$container" -- "/opt/stasis/current/bin/$program" --version >/dev/null
done
build rm "$container" >/dev/null
mkdir -p "$(dirname "$archive")"
rm -f "$archive"
build push --quiet "$reference" "docker-archive:$archive:$reference"
