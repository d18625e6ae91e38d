"""Checkpoints and restores that are cut off: a service is killed, or the node loses power, in the middle."""

import contextlib
import json
import os
import signal
import threading

import pytest

from e2e import journey
from e2e.cluster.node import CONTAINERD
from e2e.cluster.workload import checkpointed
from e2e.hold import Hold, held
from e2e.views import views
from e2e.wait import until


def sizes(folder):
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if os.path.exists(entry.path)}


def begin_checkpoint(namespace, stage):
    """A checkpoint of pod `one` that has got as far as `stage`, and whose end the thread waits for. It has so much
    memory that this takes longer than a look at its files."""
    node = namespace.cluster.nodes["node1"]
    checkpointed(namespace, "one")  # makes the folder
    old = sizes(node.checkpoints)
    asking = threading.Thread(target=checkpointed, args=(namespace, "one"))
    asking.start()
    if stage != "asked":
        grown = lambda size: size >= (16 << 20 if stage == "written" else 0)
        until(lambda: any(grown(size) for path, size in sizes(node.checkpoints).items() if path not in old)
              or not asking.is_alive(), what="a new archive", every=0.001)
    return asking


@pytest.mark.parametrize("stage", ["asked", "begun", "written"])
@pytest.mark.parametrize("service", ["stasisd", "kubelet"])
def test_a_service_killed_in_a_checkpoint_harms_nobody(namespace, service, stage):
    namespace.run("one")
    namespace.ask("one", "/grow?256")
    before = namespace.count("one")
    node = namespace.cluster.nodes["node1"]
    asking = begin_checkpoint(namespace, stage)
    node.stop(service, signal.SIGKILL)
    asking.join()
    node.start_stasisd() if service == "stasisd" else node.start_kubelet()
    until(lambda: checkpointed(namespace, "one"), 120, what="a checkpoint", every=1)
    after = namespace.count("one")
    assert (after["count"], after["born"]) == (before["count"] + 1, before["born"])
    assert namespace.status("one")["restartCount"] == 0
    assert [name for name in sizes(node.checkpoints) if not name.endswith(".tar")] == []


def test_a_node_that_lost_power_in_a_checkpoint_has_no_half_archive(namespace):
    namespace.run("one")
    namespace.ask("one", "/grow?256")
    born = namespace.count("one")["born"]
    asking = begin_checkpoint(namespace, "written")
    namespace.cluster.reboot("node1")
    asking.join()
    until(lambda: namespace.status("one")["restartCount"] > 0 and namespace.status("one")["ready"], 180,
          what="the pod after the reboot", every=0.3)
    assert namespace.count("one")["born"] != born
    for path in namespace.cluster.nodes["node1"].checkpoints.glob(f"*_{namespace.name}-*.tar"):
        journey.stasis("verify", path)
    assert until(lambda: checkpointed(namespace, "one"), 120, what="a checkpoint", every=1)


def records(node):
    """What the agent of a node remembers of restored containers, by their ids."""
    found = {}
    for path in (node.folder / "var/lib/stasis").rglob("*.json"):
        try:
            found[path.stem] = json.loads(path.read_text())
        except FileNotFoundError:  # replaced in between
            pass
    return found


def phases(node, namespace):
    return {record["phase"] for record in records(node).values() if record["podNamespace"] == namespace.name}


def programs(node):
    """Of ours that run in containers until these are restored, or while their memory is loaded."""
    found = []
    for process in node.path("/proc").glob("[0-9]*"):
        try:
            found.append((process / "comm").read_text().strip())
        except (FileNotFoundError, ProcessLookupError):
            pass
    return [name for name in found if name.startswith("stasis-")]


@contextlib.contextmanager
def restore_held(namespace, phase):
    """A pod `two` on node2 that goes on from a checkpoint of pod `one`, has got as far as `phase` and gets no further
    until this ends; what `one` said last before it."""
    namespace.run("one")
    namespace.ask("one", "/grow?256")
    before = namespace.count("one")
    image = namespace.checkpoint_image("one")
    node = namespace.cluster.nodes["node2"]
    # It remembers a phase by renameat(2), and has a thread for each call of the kubelet's.
    with held(node.pid_here("stasisd"), "renameat", 2 if phase == "restoring" else 1) as hold:
        namespace.run("two", "node2", image, wait=False)
        hold.wait()
        if phase == "restoring":
            assert phases(node, namespace) == {"restoring"}
            yield node, before
            return
        # It would have the container started at once. (By SIGSTOP the nsenter that it runs under would stop, too.)
        kubelet = Hold(node.pid_here("kubelet"), "write")
    try:
        until(lambda: phases(node, namespace) == {"created"}, what="a container that is created")
        yield node, before
    finally:
        kubelet.release()


def answers(namespace, pod):
    """Whether the program in a pod can be asked: what was seen as ready before a cut says nothing."""
    try:
        return namespace.ask(pod, "/")
    except (OSError, KeyError, TimeoutError):
        return None


@pytest.mark.parametrize("phase", ["created", "restoring"])
@pytest.mark.parametrize("cut", ["kubelet", "stasisd", "power"])
def test_a_restore_that_is_cut_off_is_made_good_and_leaves_nothing(namespace, cut, phase):
    with restore_held(namespace, phase) as (node, before):
        node.halt() if cut == "power" else node.stop(cut, signal.SIGKILL)
    {"power": lambda: namespace.cluster.reboot(node.name), "stasisd": node.start_stasisd,
     "kubelet": node.start_kubelet}[cut]()
    until(lambda: answers(namespace, "two"), 180, what="the program, which goes on", every=0.3)
    namespace.wait_ready("two")
    assert namespace.count("two") == {"count": before["count"] + 1, "born": before["born"]}
    # A container that was not started yet stays until the kubelet collects it, and could be started.
    until(lambda: phases(node, namespace) <= {"restored", "failed", "created"}, what="the end of the restore")
    assert views(node.folder / CONTAINERD) <= {record["checkpoint"]["snapshotKey"] for record in records(node).values()}
    assert programs(node) == []
    namespace.remove("pod", "two")
    until(lambda: not phases(node, namespace), 180, what="an agent that remembers nothing of the pod", every=0.3)
    assert views(node.folder / CONTAINERD) == set()
