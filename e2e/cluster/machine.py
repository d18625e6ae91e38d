"""A machine of the test cluster: namespaces of its own on top of this one's files.

Its root is an overlay of this machine's: it finds the same programs, and what it writes stays its own. Its
first process ends all of it when it ends, as a power failure would; `boot` starts it again with its disk.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

from e2e.paths import CACHE, ROOT
from e2e.wait import until

CGROUPS = Path("/sys/fs/cgroup")

# Folders that are no overlay: containerd's and the kubelet's own overlays need another file system below
# them (overlayfs takes no overlay as its upper layer), and /run is empty after a boot.
DISKS = ["var/lib/containerd", "var/lib/kubelet", "var/lib/stasis", "var/log/pods", "run"]

# The kubelet and kube-proxy set these for the whole kernel, which others use, too. Here they write a file.
SETTINGS = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
            "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"]

# Runs as pid 1 of the machine. This machine's number for it is read while /proc is still this machine's.
BOOT = r"""
set -eu
read -r pid _ </proc/self/stat
root=$FOLDER/root
mkdir -p "$root" "$FOLDER/upper" "$FOLDER/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$FOLDER/upper,workdir=$FOLDER/work" "$root"
for path in $BINDS; do
  mkdir -p "$root$path"
  mount --bind "$path" "$root$path"
done
for disk in $DISKS; do
  mkdir -p "$FOLDER/$disk" "$root/$disk"
  mount --bind "$FOLDER/$disk" "$root/$disk"
done
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
while read -r kind options path; do
  mkdir -p "$root$path"
  mount -t "$kind" -o "$options" cgroup "$root$path"
done <<<"$HIERARCHIES"
for setting in $SETTINGS; do
  [[ -e /proc/sys/$setting ]] || continue
  mkdir -p "$FOLDER/settings/${setting%/*}"
  cat "/proc/sys/$setting" >"$FOLDER/settings/$setting"
  mount --bind "$FOLDER/settings/$setting" "$root/proc/sys/$setting"
done
mkdir -p "$root/.old"
cd "$root"
pivot_root . .old
umount --lazy /.old
mount --make-rshared /
hostname "$NAME"
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo "$pid" >/run/machine.pid
trap : TERM INT
# bash reaps what loses its parent.
while :; do sleep infinity & wait || :; done
"""

# Starts a service: into the machine's cgroups and namespaces, with its pid in a file.
ENTER = r"""
for group in $GROUPS_OF_SERVICES; do echo $$ >"$group/cgroup.procs"; done
exec nsenter --target "$INIT" --mount --uts --ipc --net --pid --cgroup --root --wdns=/ "$@"
"""


def hierarchies():
    """The mounted cgroup hierarchies: (type, options, path); one on a machine of cgroup v2 alone."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        path, (kind, _, options) = fields.split()[4], rest.split()
        if kind in ("cgroup", "cgroup2") and path.startswith(str(CGROUPS)):
            options = ",".join(word for word in options.split(",") if word not in ("rw", "ro"))
            name = options.startswith("name=")
            found.append((kind, ("none," if name else "") + (options or "rw"), Path(path)))
    return found


class Machine:
    """One machine: `boot`, `start` services in it, `stop` them, `halt`."""

    def __init__(self, name, folder, cgroup):
        self.name = name
        self.folder = folder / name
        self.groups = [path / cgroup for _, _, path in hierarchies()]
        self.unified = [path / cgroup for kind, _, path in hierarchies() if kind == "cgroup2"]
        self.pidfile = self.folder / "run" / "machine.pid"

    @property
    def pid(self):
        """The first process, as this machine sees it."""
        return int(self.pidfile.read_text(encoding="utf-8"))

    def path(self, path):
        """Where a file of the machine is found from outside."""
        return Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")

    def own(self, path):
        """What the machine wrote there itself, without what it has of this machine's root."""
        path = str(path).lstrip("/")
        on_disk = any(path == disk or path.startswith(f"{disk}/") for disk in DISKS)
        return self.folder / ("" if on_disk else "upper") / path

    def boot(self, keep=()):
        """`keep`: descriptors that stay open as long as the machine runs."""
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        (self.folder / "run").mkdir(parents=True)
        (self.folder / "log").mkdir(exist_ok=True)
        self._make_cgroups()
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NAME": self.name, "FOLDER": str(self.folder),
            "BINDS": " ".join(map(str, dict.fromkeys([ROOT, CACHE, self.folder.parent]))),
            "DISKS": " ".join(DISKS), "SETTINGS": " ".join(SETTINGS),
            "HIERARCHIES": "\n".join(f"{kind} {options} {path}" for kind, options, path in hierarchies()),
            "GROUPS_OF_MACHINE": " ".join(map(str, self.groups)), "BOOT": BOOT}
        # Its cgroup namespace begins where the process is that makes it (cgroup_namespaces(7)).
        script = ('for group in $GROUPS_OF_MACHINE; do echo $$ >"$group/cgroup.procs"; done; '
                  'exec unshare --pid --mount --uts --ipc --net --cgroup --fork --kill-child bash -c "$BOOT"')
        with open(self.folder / "log" / "boot", "ab") as log:
            first = subprocess.Popen(["bash", "-c", script], env=environment, pass_fds=keep,
                                     stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                     start_new_session=True)
        until(lambda: first.poll() is not None or self.pidfile.exists() and self.pidfile.read_text(),
              what=f"{self.name}, which is to boot")
        if first.poll() is not None:
            raise RuntimeError(f"{self.name} did not boot:\n{self.log('boot')}")
        for group in self.unified:
            empty_cgroup(group)

    def _make_cgroups(self):
        for group in self.groups:
            for folder in (group, group / "services"):
                folder.mkdir(exist_ok=True)
                for name in ("cpuset.cpus", "cpuset.mems"):
                    # A new cpuset of v1 is empty, and takes no process (cpuset(7)).
                    if (folder / name).exists() and not (folder / name).read_text().strip():
                        (folder / name).write_text((folder.parent / name).read_text())

    def _enter(self, command, **popen):
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "INIT": str(self.pid), "HOME": "/root",
                       "GROUPS_OF_SERVICES": " ".join(str(group / "services") for group in self.groups)}
        return subprocess.Popen(["bash", "-c", ENTER, "enter", *map(str, command)], env=environment,
                                stdin=subprocess.DEVNULL, start_new_session=True, **popen)

    def run(self, *command):
        """What a command printed that ran in the machine; raises when it failed."""
        done = self._enter(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = done.communicate()
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(map(str, command))}: {err.strip()}")
        return out

    def start(self, name, command):
        """Starts a service. Its output goes to log/NAME, its pid to /run/NAME.pid."""
        (self.folder / "run" / f"{name}.pid").unlink(missing_ok=True)
        with open(self.folder / "log" / name, "ab") as log:
            self._enter(["bash", "-c", f'echo $$ >/run/{name}.pid; exec "$@"', name, *command],
                        stdout=log, stderr=log)
        until(lambda: self._pid_of(name), what=f"{name} on {self.name}")

    def _pid_of(self, name):
        """The service's pid in the machine."""
        path = self.folder / "run" / f"{name}.pid"
        return int(path.read_text() or 0) if path.exists() else 0

    def pid_here(self, name):
        """The same pid as this machine sees it: NSpid of proc_pid_status(5)."""
        ours = os.readlink(f"/proc/{self.pid}/ns/pid")
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                numbers = status.read_text().partition("NSpid:")[2].split("\n")[0].split()
                if numbers[-1] == str(self._pid_of(name)) and os.readlink(status.with_name("ns") / "pid") == ours:
                    return int(numbers[0])
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                pass
        raise RuntimeError(f"{name} does not run on {self.name}")

    def runs(self, name):
        pid = self._pid_of(name)
        try:
            status = self.path(f"proc/{pid}/stat").read_text() if pid else ""
        except (FileNotFoundError, ProcessLookupError):
            return False
        return bool(status) and status.rpartition(")")[2].split()[0] != "Z"

    def send(self, name, how):
        self.run("kill", f"-{int(how)}", str(self._pid_of(name)))

    def stop(self, name, how=signal.SIGTERM, seconds=40):
        """Stops a service, and kills it when it does not listen."""
        if self.runs(name):
            self.send(name, how)
            try:
                until(lambda: not self.runs(name), seconds, every=0.05)
            except TimeoutError:
                self.send(name, signal.SIGKILL)
                until(lambda: not self.runs(name))
        (self.folder / "run" / f"{name}.pid").unlink(missing_ok=True)

    def log(self, name, lines=25):
        path = self.folder / "log" / name
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def halt(self):
        """Ends every process of the machine at once."""
        if not self.is_up():
            return
        first = os.pidfd_open(self.pid)
        try:
            signal.pidfd_send_signal(first, signal.SIGKILL)
            # zap_pid_ns_processes() waits for all the others before the first is gone.
            until(lambda: not self.is_up(), 30, f"the end of {self.name}")
        finally:
            os.close(first)
        self.pidfile.unlink(missing_ok=True)

    def is_up(self):
        """Whether the pid in the file is a machine's first process that uses this folder."""
        try:
            environment = Path(f"/proc/{self.pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return False
        return f"FOLDER={self.folder}\0".encode() in environment

    def remove(self):
        self.halt()
        for group in self.groups:
            for folder, _, _ in os.walk(group, topdown=False):
                until(lambda folder=folder: remove_cgroup(folder), 10, folder, every=0.02)
        shutil.rmtree(self.folder, ignore_errors=True)


def empty_cgroup(group):
    """Moves the processes of a cgroup of version 2 to its leaf `init`: one that has any gives no controllers to
    its children, and the write to cgroup.subtree_control says EBUSY (cgroups(7), "no internal processes")."""
    (group / "init").mkdir(exist_ok=True)
    while pids := (group / "cgroup.procs").read_text(encoding="utf-8").split():
        for pid in pids:
            try:
                (group / "init" / "cgroup.procs").write_text(pid, encoding="utf-8")
            except ProcessLookupError:
                pass


def remove_cgroup(folder):
    """Busy until the last task is reaped (cgroups(7))."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True
