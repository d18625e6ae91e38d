"""A node: its own containerd with a CNI bridge, stasisd in front of it, and a kubelet that talks to stasisd."""

import contextlib
import json
import subprocess

from e2e.cluster.machine import Machine
from e2e.paths import PLACEHOLDER, STASISD
from e2e.testbed.cri import Cri, CriError
from e2e.wait import until

SERVICES = ["containerd", "stasisd", "kubelet", "kube-proxy"]  # in the order in which they start
CONTAINERD = "run/containerd/containerd.sock"
STASIS = "run/stasis/stasis.sock"

# kubeadm's, which tells its kubelet by it. This one is told by its configuration, and nobody reads the file but
# stasis-node.
TOLD = "/var/lib/kubelet/kubeadm-flags.env"
FLAGS = 'KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix:///run/containerd/containerd.sock --v=2"\n'

CONTAINERD_CONFIG = """
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  max_recv_message_size = 16777216
  max_send_message_size = 16777216
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  # Without CAP_SYS_RESOURCE no oom_score_adj below the daemon's own can be set, and the kubelet asks for
  # -998 for the sandbox and for less than 1000 for most containers.
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
"""


class Node(Machine):
    def __init__(self, name, folder, cgroup, addresses, authority, programs):
        super().__init__(name, folder, cgroup)
        self.addresses = addresses
        self.address, self.pods = addresses.nodes[name], addresses.pods[name]
        self.authority = authority
        self.programs = programs
        self.stasisd_options = []  # from its next start on
        self.checkpoints = self.folder / "var/lib/kubelet/checkpoints"
        self.runtime = Cri(self.folder / CONTAINERD, "", self.folder / "var/log/pods")
        self.cri = Cri(self.folder / STASIS, "", self.folder / "var/log/pods")

    def issue_certificates(self, server):
        self.authority.kubeconfig(self.name, server, f"system:node:{self.name}", ["system:nodes"])
        self.authority.issue(f"{self.name}-server", self.name, names=[f"DNS:{self.name}", f"IP:{self.address}"])
        self.authority.kubeconfig(f"{self.name}-proxy", server, "system:kube-proxy")

    def configure(self, registry, sandbox_image):
        """Writes the configuration of the services into the machine, which has to be up."""
        self._write("/etc/containerd/config.toml", CONTAINERD_CONFIG.format(sandbox_image=sandbox_image))
        self._write(f"/etc/containerd/certs.d/{registry}/hosts.toml",
                    f'server = "http://{registry}"\n[host."http://{registry}"]\n')
        self._write("/etc/resolv.conf", f"nameserver {self.addresses.control_plane}\n")
        self._write("/etc/cni/net.d/10-cluster.conflist", json.dumps({
            "cniVersion": "0.4.0", "name": "cluster", "plugins": [
                {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": {
                    "type": "host-local", "ranges": [[{"subnet": self.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": True}}]}))
        self._write("/usr/lib/systemd/system/kubelet.service", "[Service]\n")
        self._write(TOLD, FLAGS)
        self.path("/etc/kubernetes/manifests").mkdir(parents=True, exist_ok=True)
        self._write("/etc/kubernetes/kubelet.json", json.dumps(self._kubelet_configuration(), indent=2))
        self._write("/etc/kubernetes/kube-proxy.json", json.dumps({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "iptables", "hostnameOverride": self.name, "clusterCIDR": self.addresses.all_pods,
            "clientConnection": {"kubeconfig": str(self.authority.folder / f"{self.name}-proxy.kubeconfig")},
            # Sysctls of the whole kernel, not of a network namespace.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
        }))

    def _kubelet_configuration(self):
        secrets = self.authority.folder
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix:///{STASIS}",
            "address": self.address, "healthzBindAddress": "127.0.0.1",
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True},
                               "x509": {"clientCAFile": str(self.authority.certificate)}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(secrets / f"{self.name}-server.crt"),
            "tlsPrivateKeyFile": str(secrets / f"{self.name}-server.key"),
            "resolvConf": "/etc/resolv.conf", "clusterDomain": "cluster.local",
            "staticPodPath": "/etc/kubernetes/manifests",
            # There is no systemd, and the hierarchies are those of cgroup v1.
            "cgroupDriver": "cgroupfs", "failCgroupV1": False,
            # Without CAP_SYS_RESOURCE a process cannot lower its oom_score_adj; the kubelet logs it and goes on.
            "oomScoreAdj": 0,
            "failSwapOn": False,
            # Sharing a disk with other work is no reason to evict pods or to collect images.
            "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                             "memory.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            # Nodes are seen as they are within seconds.
            "nodeStatusUpdateFrequency": "4s", "syncFrequency": "10s",
        }

    def _write(self, path, text):
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def launch(self, service):
        """Starts a service, and does not wait until it answers."""
        if service == "stasisd":
            (self.folder / STASIS).parent.mkdir(exist_ok=True)  # a service unit's RuntimeDirectory
        self.start(service, {
            "containerd": ["containerd", "--config", "/etc/containerd/config.toml"],
            "stasisd": [STASISD, "--placeholder", PLACEHOLDER, "--checkpoint-min-free", "0", *self.stasisd_options],
            "kubelet": [
                self.programs / "kubelet", "--config=/etc/kubernetes/kubelet.json",
                f"--kubeconfig={self.authority.folder}/{self.name}.kubeconfig",
                f"--hostname-override={self.name}", f"--node-ip={self.address}", "--v=2"],
            "kube-proxy": [self.programs / "kube-proxy", "--config=/etc/kubernetes/kube-proxy.json"],
        }[service])

    def start_containerd(self):
        self.launch("containerd")
        self._await("containerd", self.runtime)

    def start_stasisd(self):
        self.launch("stasisd")
        self._await("stasisd", self.cri)

    def start_kubelet(self):
        self.launch("kubelet")

    @contextlib.contextmanager
    def kubelet_settings(self, **settings):
        """The kubelet started anew with other settings, and afterwards with its own."""
        try:
            self._restart_kubelet(self._kubelet_configuration() | settings)
            yield
        finally:
            self._restart_kubelet(self._kubelet_configuration())

    def _restart_kubelet(self, configuration):
        self.stop("kubelet")
        self._write("/etc/kubernetes/kubelet.json", json.dumps(configuration, indent=2))
        self.start_kubelet()
        until(self.kubelet_is_healthy, 60, f"the kubelet of {self.name}", every=0.1)

    def kubelet_is_healthy(self):
        healthz = ["nsenter", "-t", str(self.pid), "-n", "curl", "-fs", "http://127.0.0.1:10248/healthz"]
        return subprocess.run(healthz, capture_output=True, check=False).returncode == 0

    def start_all(self):
        self.start_containerd()
        self.start_stasisd()
        self.launch("kubelet")
        self.launch("kube-proxy")

    def _await(self, service, cri):
        def answers():
            if not self.runs(service):
                raise RuntimeError(f"{service} on {self.name} ended:\n{self.log(service)}")
            try:
                return cri.call("Version", deadline=2)
            except CriError:
                return None

        until(answers, what=f"{service} on {self.name}", every=0.05)
