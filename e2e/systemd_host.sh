#!/usr/bin/env bash
# Boots the folder $1 with the machine's own /usr as a host of its own: Debian's systemd is process 1 there,
# with the units in the folder and no others. Runs below `unshare --mount --pid --fork`; $2 is a cgroup of the
# hierarchy name=systemd.
set -euo pipefail
root=$1 cgroup=$2
echo $$ >"$cgroup/cgroup.procs"
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mount --bind -o ro /usr usr
mount --bind units usr/lib/systemd/system
mount -t proc proc proc
mount -t sysfs -o ro sys sys
mount -t tmpfs cgroup sys/fs/cgroup
mkdir sys/fs/cgroup/systemd
mount -t tmpfs run run
mount -t tmpfs dev dev
for name in null zero full random urandom; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
ln -s /proc/self/fd dev/fd
mkdir dev/shm
touch dev/console
exec unshare --cgroup bash -c '
  mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
  exec env -i container=stasis-test PATH=/usr/sbin:/usr/bin unshare --root=. /lib/systemd/systemd \
    --unit=multi-user.target --log-level=info --log-target=console --show-status=no'
