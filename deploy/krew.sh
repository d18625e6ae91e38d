#!/usr/bin/env bash
# Packs the kubectl plugin for any Linux, and the manifest for Krew with the hash of that. Usage: krew.sh PROGRAMS FOLDER
# $STASIS_URL is where releases are downloaded, and $STASIS_HOMEPAGE what users read; unset, they are names that cannot
# exist, and `kubectl krew install --manifest=FOLDER/checkpoint.yaml --archive=FOLDER/…` works all the same.
set -euo pipefail
export LC_ALL=C
programs=$(readlink -f "$1") folder=$2
here=$(dirname "$(readlink -f "$0")")
version=$("$programs/portable-kubectl-checkpoint" --version)
archive=kubectl-checkpoint-$version-linux-amd64.tar.gz

work=$(mktemp -d "$folder/.krew.XXXXXX")
trap 'rm -rf "$work"' EXIT
strip --strip-unneeded -o "$work/kubectl-checkpoint" "$programs/portable-kubectl-checkpoint"
cp "$here/../cmd/kubectl-checkpoint/kubectl_complete-checkpoint" "$work"
cp "$here/debian/copyright" "$work/LICENSE" # Krew wants one in the archive
chmod 755 "$work"/kubectl*
chmod 644 "$work/LICENSE"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" -cf - \
  LICENSE kubectl-checkpoint kubectl_complete-checkpoint | gzip -9n >"$folder/$archive"
sed -e '/^#/d' -e "s|@VERSION@|$version|" -e "s|@ARCHIVE@|$archive|" \
  -e "s|@SHA256@|$(sha256sum "$folder/$archive" | cut -d ' ' -f 1)|" \
  -e "s|@URL@|${STASIS_URL:-https://stasis.invalid/releases}|" \
  -e "s|@HOMEPAGE@|${STASIS_HOMEPAGE:-https://stasis.invalid}|" "$here/krew.yaml.in" >"$folder/checkpoint.yaml"
echo "$folder/$archive"
