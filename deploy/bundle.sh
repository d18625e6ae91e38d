#!/usr/bin/env bash
# Makes a release that runs on any distribution: the programs, the libraries that they were built with, the
# loader of these, and the units. Usage: bundle.sh PROGRAMS FOLDER; prints FOLDER/NAME, where NAME is the
# version and a digest of what is in it. The same input makes the same bytes.
#
# Not static programs: Debian has no static library of cpprestsdk, and glibc's own name lookups load shared
# ones. Not a program started through its loader: /proc/self/exe would be the loader, and the agent starts
# itself and what lies beside it by that link.
set -euo pipefail
export LC_ALL=C
programs=$(readlink -f "$1") folder=$2
names=(stasis stasisd stasis-node stasis-pages stasis-placeholder)
units=$(dirname "$(readlink -f "$0")")/systemd
loader=ld-linux-x86-64.so.2

work=$(mktemp -d "$folder/.bundle.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin" "$work/lib" "$work/systemd"
cp "$units"/* "$work/systemd"
for name in "${names[@]}"; do
  strip --strip-unneeded -o "$work/bin/$name" "$programs/$name"
done

# What ldd names, all but the kernel's vdso; the placeholder is static and has none.
for name in "${names[@]}"; do ldd "$programs/$name" 2>/dev/null || true; done |
  grep -o '/[^ ]*\.so[^ ]*' | sort -u |
  while read -r library; do cp -L "$library" "$work/lib/${library##*/}"; done

version=$("$programs/stasisd" --version)
name=$version-$(cd "$work" && find . -type f | sort | xargs sha256sum | sha256sum | cut -c 1-12)
# By absolute paths, so a release runs from its own place only: the kernel wants the loader's so, and $ORIGIN
# would need /proc. DT_RPATH, which holds for what libraries need too, as DT_RUNPATH does not: ld.so(8).
home=/opt/stasis/releases/$name
for program in stasis stasisd stasis-node stasis-pages; do
  patchelf --set-interpreter "$home/lib/$loader" "$work/bin/$program"
  patchelf --force-rpath --set-rpath "$home/lib" "$work/bin/$program"
done
chmod 755 "$work" "$work"/*/ "$work/bin"/* "$work/lib/$loader"
chmod 644 "$work/systemd"/*
find "$work" -exec touch -hd "@${SOURCE_DATE_EPOCH:-0}" {} +
rm -rf "${folder:?}/$name"
mv "$work" "$folder/$name"
echo "$folder/$name"
