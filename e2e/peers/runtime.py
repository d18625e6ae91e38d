"""The containerd of the peers tree, which checkpoints and restores by runc and CRIU.

It shares the testbed's folder, registry, bridge and logs; its sockets and state are its own.
"""

from e2e.paths import PEERS
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
        until(lambda: self._answers(service), what="the peer's containerd", every=0.05)
        return self

    def _answers(self, service):
        assert service.poll() is None, self.bed.service_log("peer")
        try:
            return self.cri.call("Version", deadline=2)
        except CriError:
            return None

    def __exit__(self, *_):
        for pod in self.cri.call("ListPodSandbox").get("items", []):
            self.cri.remove_pod(pod["id"])
        self.bed.stop_service("peer")
