#!/usr/bin/env bash
# Installs from Debian what the build and the tests need and the machine lacks. Starts no service.
set -euo pipefail

packages=(
  ca-certificates g++ cmake ninja-build ccache git pkgconf
  libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev libabsl-dev libnghttp2-dev
  libcpprest-dev libarchive-dev libseccomp-dev libssl-dev libzstd-dev libxxhash-dev libcap-dev
  nlohmann-json3-dev libcli11-dev libspdlog-dev libfmt-dev libgtest-dev libgmock-dev
  containerd runc docker-registry containernetworking-plugins iproute2 iputils-ping iptables nftables
  xz-utils bzip2 zstd redis-server redis-tools busybox-static python3 python3-pytest perl-base libpython3-stdlib
  prometheus python3-jsonschema openssl curl  # promtool; what the REST API is tested with
)
# Kills the installer of nodes at every step; a host of its own; programs with their own loader; the package.
packages+=(strace systemd patchelf python3-yaml dpkg-dev file fakeroot lintian)
# The programs of the soak.
packages+=(nginx-light postgresql-15 nodejs openjdk-17-jdk-headless)
[[ ${1:-} == --image ]] && packages+=(buildah debootstrap)
[[ ${1:-} == --lint ]] && packages+=(clang-format-19 clang-tidy-19)
[[ ${1:-} == --bench ]] && packages+=(tomcat10-user tomcat10-examples)
[[ ${1:-} == --peers ]] && packages+=(debootstrap)
[[ ${1:-} == --cluster ]] && packages+=(etcd-server openssl bash-completion)
# e2e/tools/go.mod asks for 1.24, backports have 1.23: Go fetches a newer toolchain by itself from 1.21 on.
go_at_least=1.21

installed() { [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null) == ii* ]]; }

go_is_new_enough() {
  local version
  version=$(PATH=$PATH:/usr/local/go/bin go env GOVERSION 2>/dev/null) || return 1
  [[ $(printf '%s\n' "$go_at_least" "${version#go}" | sort -V | head -n 1) == "$go_at_least" ]]
}

# Runs apt-get so that no package starts its service: invoke-rc.d asks policy-rc.d first, and 101 is
# "forbidden by policy".
apt() {
  local policy=/usr/sbin/policy-rc.d made=0 status=0
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    made=1
  fi
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" || status=$?
  [[ $made -eq 0 ]] || rm -f "$policy"
  return "$status"
}

missing=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
go=()
go_is_new_enough || go=(golang-go)
[[ ${#missing[@]} -gt 0 || ${#go[@]} -gt 0 ]] || exit 0
if [[ $EUID -ne 0 ]]; then
  echo "setup: missing ${missing[*]} ${go[*]}: run it as root" >&2
  exit 1
fi

if [[ ${#go[@]} -gt 0 ]]; then
  # Backports come from the mirror that apt already uses.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 '/debian/*$' || true)
  echo "deb ${mirror:-http://deb.debian.org/debian} bookworm-backports main" \
    >/etc/apt/sources.list.d/stasis-backports.list
fi
echo "setup: installing ${missing[*]} ${go[*]}"
apt update -q
[[ ${#missing[@]} -eq 0 ]] || apt install -qy --no-install-recommends "${missing[@]}"
[[ ${#go[@]} -eq 0 ]] || apt install -qy --no-install-recommends -t bookworm-backports "${go[@]}"
