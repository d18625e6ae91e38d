"""Pods with a user namespace of their own (hostUsers: false): the containerd of the peers tree makes them."""

import os
import shutil
from types import SimpleNamespace

import pytest

from e2e import journey
from e2e.container_targets_test import NAMES, ONCE, Targets
from e2e.paths import TARGETS
from e2e.peers.runtime import PeerRuntime
from e2e.testbed.cri import NAMESPACES, CriError
from e2e.wait import until

COUNT = 65_536


def first_of(pod):
    """Each pod has ids of its own."""
    return 200_000 + COUNT * int(pod.rpartition("-")[2])


def ids(first, count=COUNT):
    return [{"host_id": first, "container_id": 0, "length": count}]


def users(first, count=COUNT):
    """What a kubelet sends for such a pod, in the pod and in each container of it."""
    both = {"uids": ids(first, count), "gids": ids(first, count)}
    return {"namespace_options": {"pid": 1, "userns_options": {"mode": 0, **both}}}


@pytest.fixture(scope="module")
def node(bed):
    """A stasisd in front of that containerd, which sees but one folder of ours."""
    bed.folder.chmod(0o711)  # as /var/lib/containerd is: the root of a pod has to come through
    shutil.copytree(TARGETS, bed.folder / "targets")
    with PeerRuntime(bed) as runtime, runtime.behind_stasisd() as cri:
        yield SimpleNamespace(cri=cri, image=bed.image, registry=bed.registry, folder=bed.folder)


@pytest.fixture
def pods(node):
    """Runs pods, which are removed after the test."""
    made = []

    def run_pod(name, security=None):
        security = security or users(first_of(name))
        made.append(node.cri.run_pod(name, security_context=security))
        return made[-1]

    yield run_pod
    left = {pod["id"] for pod in node.cri.call("ListPodSandbox").get("items", [])}
    for pod in made:
        if pod.id in left:
            node.cri.remove_pod(pod.id)


class UserTargets(Targets):
    """Their volumes are mounted as a kubelet has it: what is root's there is root's on the host."""

    def mounts(self):
        first = first_of(self.pod.config["metadata"]["name"])
        self.config["security"] = users(first)
        mapped = {"uidMappings": ids(first), "gidMappings": ids(first)}
        return [{"container_path": "/share", "host_path": str(self.folder), **mapped},
                {"container_path": "/targets", "host_path": str(self.bed.folder / "targets"),
                 "readonly": True, **mapped}]


@pytest.mark.parametrize("times", [0, 1, 2])
def test_targets(node, pods, times):
    folder = node.folder / f"share-{times}"
    folder.mkdir()
    made = UserTargets(node, pods, folder, [name for name in NAMES if times < 2 or name not in ONCE])
    until(made.ready, what="all targets to be ready")
    for _ in range(times):
        made.move()
    assert made.finish() == {}


class Moved:
    """A container of a shell that moves from pod to pod; what its users are there, each pod says."""

    def __init__(self, node, pods, name, script):
        self.node, self.pods, self.name = node, pods, name
        self.pod, self.container = self.start("-0", node.image("busybox"), users(first_of("x-0")),
                                              command=["sh", "-c", script])

    def start(self, pod, image, security, **config):
        made = self.pods(self.name + pod, security)
        return made, self.node.cri.run(made, "shell", image, security=security, **config)

    def move(self, pod, security):
        archive = self.node.folder / f"{self.name}{pod}.tar"
        journey.checkpoint(self.node.cri, self.container, archive)
        image = journey.push_image(archive, f"{self.node.registry.address}/{self.name}{pod}:1")
        self.pod, self.container = self.start(pod, image, security)

    def run(self, script):
        return self.node.cri.exec(self.container, "sh", "-c", script).out


FILES = """
for place in /data/file /dev/shm/file; do echo text >$place; chown 7:8 $place; chmod 4755 $place; done
exec 3>/data/gone; chown 3:4 /data/gone; rm /data/gone
while :; do sleep 0.1; done
"""
SHOW = "stat -c '%n %u:%g %a' /data/file /dev/shm/file; stat -L -c '%u:%g' /proc/1/fd/3; cat /proc/1/uid_map"


def shown(container):
    *files, map_ = container.run(SHOW).splitlines()
    return files, map_.split()


def test_files_are_whose_they_were_whatever_the_pod_s_ids_are(node, pods):
    moved = Moved(node, pods, "files", FILES)
    before, map_ = until(lambda: len(shown(moved)[0]) == 3 and shown(moved), what="the files")
    assert before == ["/data/file 7:8 4755", "/dev/shm/file 7:8 4755", "3:4"] and map_[1] == "200000"
    moved.move("-1", users(first_of("x-1")))
    assert shown(moved) == (before, ["0", str(first_of("x-1")), str(COUNT)])
    pid = node.cri.pid(moved.container)
    assert os.stat(f"/proc/{pid}/root/data/file").st_uid == first_of("x-1") + 7
    # Into one without, and back.
    moved.move("-2", NAMESPACES)
    assert shown(moved) == (before, ["0", "0", "4294967295"])
    moved.move("-3", users(first_of("x-3")))
    assert shown(moved) == (before, ["0", str(first_of("x-3")), str(COUNT)])


def test_ids_that_the_pod_does_not_have_are_not_taken_from_elsewhere(node, pods):
    moved = Moved(node, pods, "few", "echo text >/data/file; chown 70:70 /data/file; while :; do sleep 0.1; done")
    until(lambda: "70" in moved.run("stat -c %u /data/file"), what="the file")
    with pytest.raises(CriError, match="the user namespace here has no id 70"):
        moved.move("-1", users(first_of("x-1"), count=50))


def test_a_user_namespace_within_is_refused_before_anything_changes(node, pods):
    moved = Moved(node, pods, "within", "unshare -U sleep 1000 & while :; do sleep 0.1; done")
    links = "for task in /proc/[0-9]*; do readlink $task/ns/user; done | sort -u"
    until(lambda: moved.run(links).count("\n") > 1, what="the one within")
    with pytest.raises(CriError, match="is in another user namespace than the root of its tree"):
        journey.checkpoint(node.cri, moved.container, node.folder / "within.tar")
    assert moved.run("echo runs") == "runs\n"
