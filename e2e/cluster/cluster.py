"""A cluster on one machine: a control plane and two nodes, each in namespaces of its own."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from e2e.cluster import control_plane, node
from e2e.cluster.certificates import Authority
from e2e.cluster.kubectl import Kubectl
from e2e.paths import CACHE
from e2e.testbed.images import IMAGES
from e2e.testbed.testbed import take_number
from e2e.wait import until

NODES = ["node1", "node2"]
DEFAULT_VERSION = "1.34"
PREFIX = "stasis-cluster-"
OWNED = "owner"  # locked by the cluster's maker, and not there where it is to stay


@dataclass
class Addresses:
    """A /24 for machines, one for pods, halved between the nodes, one for services."""

    number: int

    def __post_init__(self):
        net = lambda kind: f"10.{kind}.{self.number}"
        self.control_plane, self.host = f"{net(214)}.1", f"{net(214)}.254"
        self.nodes = {name: f"{net(214)}.{index}" for index, name in enumerate(NODES, 11)}
        self.all_pods = f"{net(215)}.0/24"
        self.pods = dict(zip(NODES, map(str, ip_network(self.all_pods).subnets(1))))
        self.services, self.api_service = f"{net(216)}.0/24", f"{net(216)}.1"

    @staticmethod
    def hardware(address):
        """The hardware address of who has an address, as it is after a reboot, too: neighbours remember it for a
        minute. A bridge that was not given one takes the lowest of its ports, which come and go."""
        return "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def take_lock(path):
    """The open lock file, which a process holds as long as it lives; or nothing, when another has it."""
    lock = open(path, "w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def remove_abandoned():
    """Takes clusters away whose maker was killed. No process id is looked at: it may be of another namespace."""
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        if not (folder / OWNED).exists():
            continue
        with contextlib.suppress(FileNotFoundError):
            if lock := take_lock(folder / OWNED):
                print(f"cluster: taking away {folder}, which was left behind")
                with lock, contextlib.suppress(FileNotFoundError):
                    Cluster(folder).down()
                shutil.rmtree(folder, ignore_errors=True)


class Cluster:
    """Made by `up`, or found again by `Cluster(folder)`; taken away by `down`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        facts = json.loads((self.folder / "cluster.json").read_text(encoding="utf-8"))
        self.version, self.number = facts["version"], facts["number"]
        self.addresses = Addresses(self.number)
        programs = CACHE / f"kubernetes-{self.version}"
        self.authority = Authority(self.folder / "secrets")
        make = lambda kind, name: kind(name, self.folder, f"{self.folder.name}-{name}", self.addresses,
                                       self.authority, programs)
        self.control_plane = make(control_plane.ControlPlane, "control-plane")
        self.nodes = {name: make(node.Node, name) for name in NODES}
        self.kubectl = Kubectl(programs / "kubectl", self.authority.folder / "admin.kubeconfig")
        self.images = {}

    @classmethod
    def up(cls, version=DEFAULT_VERSION):
        """Starts a cluster and waits until both nodes are ready."""
        remove_abandoned()
        number, lock = take_number()
        made = Path(tempfile.mkdtemp(prefix=f"new-{PREFIX}"))
        owner = take_lock(made / OWNED)  # before anybody looks for it by its name
        folder = made.rename(made.with_name(made.name.removeprefix("new-")))
        folder.chmod(0o755)
        (folder / "cluster.json").write_text(json.dumps({"version": version, "number": number}))
        cluster = cls(folder)
        cluster.owner = owner
        try:
            # The number is taken as long as the control plane's first process runs.
            cluster._boot_all(lock)
            cluster._start_all()
            until(cluster.is_ready, 120, "two ready nodes", every=0.3)
        except BaseException:
            cluster.show_logs()
            cluster.down()
            raise
        finally:
            lock.close()
        return cluster

    def keep(self):
        """From here on it outlives its maker."""
        (self.folder / OWNED).unlink()

    @property
    def machines(self):
        return [self.control_plane, *self.nodes.values()]

    def _boot_all(self, lock):
        self.control_plane.boot(keep=[lock.fileno()])
        self._connect_control_plane()
        for machine in self.nodes.values():
            self.boot_node(machine)

    def boot_node(self, machine):
        machine.boot()
        self._connect_node(machine)

    def _connect_control_plane(self):
        """A bridge in its network namespace, and a veth between the bridge and this machine."""
        plane, link = self.control_plane, f"stasis{self.number}"
        plane.run("ip", "link", "add", "cluster", "address", Addresses.hardware(plane.address), "type", "bridge")
        plane.run("ip", "address", "add", f"{plane.address}/24", "dev", "cluster")
        plane.run("ip", "link", "set", "cluster", "up")
        ip("link", "add", link, "type", "veth", "peer", "name", "host", "netns", str(plane.pid))
        plane.run("ip", "link", "set", "host", "master", "cluster", "up")
        ip("address", "add", f"{self.addresses.host}/24", "dev", link)
        ip("link", "set", link, "up")
        for name, pods in self.addresses.pods.items():
            ip("route", "add", pods, "via", self.addresses.nodes[name])
            plane.run("ip", "route", "add", pods, "via", self.addresses.nodes[name])

    def _connect_node(self, machine):
        ip("link", "add", "eth0", "address", Addresses.hardware(machine.address), "netns", str(machine.pid), "type",
           "veth", "peer", "name", machine.name, "netns", str(self.control_plane.pid))
        self.control_plane.run("ip", "link", "set", machine.name, "master", "cluster", "up")
        machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
        machine.run("ip", "link", "set", "eth0", "up")
        machine.run("ip", "route", "add", "default", "via", self.addresses.control_plane)
        for name, pods in self.addresses.pods.items():
            if name != machine.name:
                machine.run("ip", "route", "add", pods, "via", self.addresses.nodes[name])

    def _start_all(self):
        plane = self.control_plane
        plane.start_registry()
        plane.issue_certificates()
        plane.start_all()
        # The API server grants nodes their rights by the node authorizer, and kube-proxy by a built-in role.
        for machine in self.nodes.values():
            machine.issue_certificates(plane.server)
            machine.configure(plane.registry.address, self.image("pause"))
            machine.start_all()

    def image(self, name):
        """The reference of one of the images of e2e/testbed/images.py, pushed when first asked for."""
        if name not in self.images:
            self.images[name] = self.control_plane.registry.push(IMAGES[name], name)
        return self.images[name]

    def is_ready(self):
        for machine in self.nodes.values():
            for service in node.SERVICES:
                if not machine.runs(service):
                    raise RuntimeError(f"{service} on {machine.name} ended:\n{machine.log(service)}")
        found = self.kubectl.get("nodes")["items"]
        conditions = [condition for item in found for condition in item["status"]["conditions"]]
        ready = [c for c in conditions if c["type"] == "Ready" and c["status"] == "True"]
        return len(ready) == len(NODES)

    def reboot(self, name, start=node.Node.start_all):
        """Ends everything on a node at once, and starts it from its disk; `start` is for its services."""
        machine = self.nodes[name]
        machine.halt()
        self.boot_node(machine)
        start(machine)

    def show_logs(self):
        for machine in self.machines:
            for path in sorted((machine.folder / "log").glob("*")):
                print(f"--- {machine.name} {path.name}\n{machine.log(path.name)}")

    def down(self):
        for machine in reversed(self.machines):
            machine.remove()
        subprocess.run(["ip", "link", "delete", f"stasis{self.number}"], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.down()


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False,
                          env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
