"""A node in a folder: Debian's containerd with runc, a registry, and stasisd in front of containerd.

Everything lives below one private folder, on a bridge and in a cgroup of its own, so that any number of
testbeds run side by side; the end of the `with` takes all of it away.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from e2e.paths import PLACEHOLDER, STASISD
from e2e.testbed.cri import Cri, CriError
from e2e.testbed.images import IMAGES
from e2e.testbed.registry import Registry
from e2e.wait import until

LOCKS = Path("/run/stasis-testbed")
CGROUPS = Path("/sys/fs/cgroup")

CONTAINERD = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{folder}/containerd.sock"
  max_recv_message_size = 16777216
  max_send_message_size = 16777216
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  # Without CAP_SYS_RESOURCE no oom_score_adj below the daemon's own can be set.
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{folder}/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{folder}/certs.d"
"""


def take_number():
    """A number that no other testbed of this machine has, and the lock that keeps it."""
    LOCKS.mkdir(exist_ok=True)
    for number in range(200):
        lock = open(LOCKS / str(number), "w", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number, lock
        except BlockingIOError:
            lock.close()
    raise RuntimeError("200 testbeds run already")


class Testbed:
    """`cri` is the socket that a kubelet would use; `runtime` is containerd's own."""

    __test__ = False  # not a class of tests, whatever its name says to pytest

    def __init__(self, shim=True, stands_for=(), host_ports=False, shim_options=()):
        """`stands_for`: other registries, by their host, that the testbed's own is asked instead of.
        `host_ports`: pods may have ports of the host, for which iptables rules are made.
        `shim_options`: more words of stasisd's command line."""
        self.shim = shim
        self.stands_for = stands_for
        self.host_ports = host_ports
        self.shim_options = shim_options
        self.services = {}
        self.images = {}

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="stasis-"))
        self.number, self.lock = take_number()
        self.bridge = f"stasis{self.number}"
        self.cgroup = f"/{self.folder.name}"
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self):
        self.logs = self.folder / "logs"
        self.registry = Registry.serve(self.folder, self.start)
        self._write_configuration()
        self.runtime = Cri(self.folder / "containerd.sock", self.cgroup, self.logs)
        self.start_runtime()
        self.cri = self.runtime
        if self.shim:
            self.cri = Cri(self.folder / "stasis.sock", self.cgroup, self.logs)
            self.start_shim()

    def start(self, name, command):
        """Starts a service with its output in NAME.log."""
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        with open(self.folder / f"{name}.log", "ab") as log:
            self.services[name] = subprocess.Popen(
                [str(word) for word in command], cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, env={**os.environ, "PATH": path})
        return self.services[name]

    def start_runtime(self):
        self._await(self.start("containerd", ["containerd", "--config", self.folder / "containerd.toml"]),
                    self.runtime, "containerd")

    def start_shim(self):
        self._await(self.start("stasisd", [
            STASISD, "--listen", self.cri.endpoint, "--runtime-endpoint", self.runtime.endpoint,
            "--state-dir", self.folder / "stasis", "--placeholder", PLACEHOLDER, *self._space(),
            *self.shim_options]), self.cri, "stasisd")

    def _space(self):
        """The machine that tests run on may be nearly full."""
        return [] if "--checkpoint-min-free" in self.shim_options else ["--checkpoint-min-free", "0"]

    def stop_service(self, name, how=signal.SIGTERM):
        service = self.services.pop(name, None)
        if service and service.poll() is None:
            service.send_signal(how)
            try:
                service.wait(20)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()

    def image(self, name):
        """The reference of one of the images in images.py, pushed when first asked for."""
        if name not in self.images:
            self.images[name] = self.registry.push(IMAGES[name], name)
        return self.images[name]

    def service_log(self, name, lines=20):
        path = self.folder / f"{name}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _await(self, service, cri, name):
        def answers():
            if service.poll() is not None:
                raise RuntimeError(f"{name} ended with {service.returncode}:\n{self.service_log(name)}")
            try:
                return cri.call("Version", deadline=2)
            except CriError:
                return None

        until(answers, what=name, every=0.05)

    def _write_configuration(self):
        for host in (self.registry.address, *self.stands_for):
            hosts = self.folder / "certs.d" / host
            hosts.mkdir(parents=True)
            (hosts / "hosts.toml").write_text(f'server = "http://{self.registry.address}"\n'
                                              f'[host."http://{self.registry.address}"]\n')
        cni = self.folder / "cni"
        cni.mkdir()
        plugins = [{
            "type": "bridge", "bridge": self.bridge, "isGateway": True, "hairpinMode": True,
            "ipam": {"type": "host-local", "dataDir": str(self.folder / "ipam"),
                     "ranges": [[{"subnet": f"10.213.{self.number}.0/24"}]]},
        }]
        if self.host_ports:
            plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
        (cni / "10-testbed.conflist").write_text(json.dumps({
            "cniVersion": "0.4.0", "name": self.bridge, "plugins": plugins}))
        (self.folder / "containerd.toml").write_text(
            CONTAINERD.format(folder=self.folder, sandbox_image=self.image("pause")))

    def __exit__(self, *_):
        self._remove_pods()
        for name in reversed(list(self.services)):
            self.stop_service(name)
        self._kill_shims()
        self._unmount()
        subprocess.run(["ip", "link", "delete", self.bridge], stderr=subprocess.DEVNULL, check=False)
        self._remove_cgroups()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()

    def _remove_pods(self):
        # Containerd's own socket: what a broken shim left behind goes too.
        if "containerd" not in self.services:
            return
        try:
            pods = self.runtime.call("ListPodSandbox").get("items", [])
        except CriError:
            return
        for pod in pods:
            try:
                self.runtime.remove_pod(pod["id"])
            except CriError as error:
                print(f"testbed: {error}")

    def _kill_shims(self):
        """Shims outlive containerd by design; ours are those that were given our socket."""
        ours = f"-address\0{self.folder}/containerd.sock\0".encode()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if ours in Path(f"/proc/{entry}/cmdline").read_bytes():
                    os.kill(int(entry), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue

    def _unmount(self):
        below = f"{self.folder}/"
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed([path for path in mounts if path.startswith(below)]):
            subprocess.run(["umount", "--lazy", mount], check=False)

    def _remove_cgroups(self):
        for top in [*CGROUPS.glob(f"*{self.cgroup}"), *CGROUPS.glob(self.cgroup[1:])]:
            for folder, _, _ in os.walk(top, topdown=False):
                self._remove_cgroup(folder)

    @staticmethod
    def _remove_cgroup(folder):
        # Busy until the last task is reaped (cgroups(7)).
        for _ in range(100):
            try:
                os.rmdir(folder)
                return
            except OSError:
                time.sleep(0.02)
