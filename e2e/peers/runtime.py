"""The containerd of the peers tree, which checkpoints and restores by runc and CRIU.

It shares the testbed's folder, registry, bridge and logs; its sockets and state are its own.
"""

import contextlib
import shutil

from e2e.paths import PEERS, PLACEHOLDER, STASISD
from e2e.peers.tools import TREE
from e2e.testbed.cri import Cri, CriError
from e2e.wait import until

CONFIGURATION = """
version = 3
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{folder}/containerd.sock"
[ttrpc]
  address = "{folder}/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{sandbox_image}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{certificates}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      Root = "{folder}/runc"
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{cni}"
"""


class PeerRuntime:
    """`cri` is its socket."""

    def __init__(self, bed):
        self.bed = bed
        self.folder = bed.folder / "peer"

    def __enter__(self):
        self.folder.mkdir()
        configuration = self.folder / "containerd.toml"
        configuration.write_text(CONFIGURATION.format(
            folder=self.folder, sandbox_image=self.bed.image("pause"),
            certificates=self.bed.folder / "certs.d", cni=self.bed.folder / "cni"))
        self.cri = Cri(self.folder / "containerd.sock", self.bed.cgroup, self.bed.logs)
        service = self.bed.start("peer", [TREE, "enter", PEERS, self.bed.folder, "containerd",
                                          "--config", configuration])
        until(lambda: self._answers(service, self.cri, "peer"), what="the peer's containerd", every=0.05)
        return self

    def _answers(self, service, cri, name):
        assert service.poll() is None, self.bed.service_log(name)
        try:
            return cri.call("Version", deadline=2)
        except CriError:
            return None

    @contextlib.contextmanager
    def behind_stasisd(self):
        """The socket of a stasisd in front of it. What that mounts into containers has to be in the shared folder."""
        cri = Cri(self.folder / "stasis.sock", self.bed.cgroup, self.bed.logs)
        service = self.bed.start("stasisd-peer", [
            STASISD, "--listen", cri.endpoint, "--runtime-endpoint", self.cri.endpoint, "--state-dir",
            self.folder / "stasis", "--placeholder", shutil.copy(PLACEHOLDER, self.folder), "--checkpoint-min-free", "0"])
        until(lambda: self._answers(service, cri, "stasisd-peer"), what="stasisd", every=0.05)
        try:
            yield cri
        finally:
            self.bed.stop_service("stasisd-peer")

    def __exit__(self, *_):
        for pod in self.cri.call("ListPodSandbox").get("items", []):
            self.cri.remove_pod(pod["id"])
        self.bed.stop_service("peer")
