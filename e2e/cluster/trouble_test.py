"""Programs that crash, and services that are stopped or killed, around checkpoints and restores."""

import os
import signal
import subprocess
import threading

import pytest

from e2e import journey
from e2e.cluster.kubectl import KubectlError
from e2e.cluster.workload import controller
from e2e.wait import until

FRESH = {"stasis.dev/on-restart": "fresh"}


def crash(namespace, pod):
    """Ends the program in a pod and waits until the kubelet has started it again."""
    restarts = namespace.status(pod)["restartCount"]
    with pytest.raises(OSError):
        namespace.ask(pod, "/exit?3")
    until(lambda: namespace.status(pod)["restartCount"] > restarts and namespace.status(pod)["ready"],
          what="the restart", every=0.1)
    assert namespace.status(pod)["lastState"]["terminated"]["exitCode"] == 3


@pytest.mark.parametrize("annotations, again", [({}, True), (FRESH, False)], ids=["restore", "fresh"])
def test_a_crash_ends_in_the_checkpoint_or_anew_as_the_pod_says(namespace, annotations, again):
    namespace.run("one")
    before = [namespace.count("one") for _ in range(3)][-1]
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image, annotations)
    assert namespace.count("two") == {"count": 4, "born": before["born"]}
    for _ in range(2):
        crash(namespace, "two")
        after = namespace.count("two")
        assert (after["born"] == before["born"], after["count"]) == ((True, 4) if again else (False, 1))
    assert namespace.status("two")["image"] == image


def test_an_unknown_policy_is_refused_in_the_pods_status(namespace):
    namespace.run("one")
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image, {"stasis.dev/on-restart": "never"}, wait=False)
    state = until(lambda: namespace.get("pod", "two")["status"].get("containerStatuses", [{}])[0].get(
        "state", {}).get("waiting", {}).get("message", ""), what="the refusal", every=0.1)
    until(lambda: '"restore" or "fresh"' in namespace.kubectl("describe", "pod", "two"), what=state, every=0.2)


def test_a_kubelet_that_is_started_again_finds_the_restored_container(namespace):
    namespace.run("one")
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image)
    before, container = namespace.count("two"), namespace.status("two")["containerID"]
    node = namespace.cluster.nodes["node2"]
    node.stop("kubelet")
    node.start_kubelet()
    # The pod that the kubelet runs next tells that it has looked at those of before.
    namespace.run("three", "node2")
    status = namespace.status("two")
    assert (status["containerID"], status["restartCount"], status["image"]) == (container, 0, image)
    assert namespace.count("two")["count"] == before["count"] + 1
    assert namespace.raw_checkpoint("two")["items"]


@pytest.mark.short
def test_a_killed_stasisd_leaves_pods_as_they_are(namespace):
    namespace.run("one")
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image)
    before, container = namespace.count("two"), namespace.status("two")["containerID"]
    node = namespace.cluster.nodes["node2"]
    node.stop("stasisd", signal.SIGKILL)
    assert namespace.count("two")["count"] == before["count"] + 1
    with pytest.raises(KubectlError, match="checkpointing of .* failed|has prevented the request"):
        namespace.raw_checkpoint("two")
    node.start_stasisd()
    until(lambda: checkpointed(namespace, "two"), what="a checkpoint after the restart", every=0.2)
    status = namespace.status("two")
    assert (status["containerID"], status["restartCount"], status["image"]) == (container, 0, image)


def checkpointed(namespace, pod):
    try:
        return namespace.raw_checkpoint(pod)
    except KubectlError:  # the kubelet connects again by itself
        return None


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


def test_stasisd_killed_in_a_restore_is_made_up_for_by_the_kubelet(namespace):
    namespace.run("one")
    before = namespace.count("one")
    image = namespace.checkpoint_image("one")
    node = namespace.cluster.nodes["node2"]
    for number in range(3):
        pod = f"again-{number}"
        namespace.run(pod, "node2", image, wait=False)
        until(lambda pod=pod: "container created from its checkpoint" in node.log("stasisd", 2) or ready(namespace, pod),
              what="a restore under way", every=0.002)
        node.stop("stasisd", signal.SIGKILL)
        node.start_stasisd()
        namespace.wait_ready(pod, 90)
        assert namespace.count(pod) == {"count": before["count"] + 1, "born": before["born"]}


def ready(namespace, pod):
    statuses = namespace.get("pod", pod)["status"].get("containerStatuses", [{}])
    return statuses[0].get("ready")


def test_a_node_that_lost_power_restores_its_pods_again(namespace):
    namespace.run("one")
    before = namespace.count("one")
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image)
    namespace.cluster.reboot("node2")
    until(lambda: namespace.status("two")["restartCount"] > 0 and namespace.status("two")["ready"], 90,
          what="the pod after the reboot", every=0.3)
    assert namespace.count("two") == {"count": before["count"] + 1, "born": before["born"]}
    node = namespace.cluster.nodes["node2"]
    views = subprocess.run(["grep", "-c", "overlay", f"/proc/{node.pid}/mounts"], capture_output=True, text=True,
                           check=False).stdout
    assert int(views) < 20


def test_pods_of_a_drained_node_go_on_from_the_checkpoint_on_the_other(namespace):
    namespace.run("one")
    before = namespace.count("one")
    image = namespace.checkpoint_image("one")
    namespace.remove("pod", "one")
    namespace.apply(controller("Deployment", image, replicas=2))
    namespace.wait_rolled_out("deployment/set")
    try:
        namespace.cluster.kubectl("drain", "node1", "--force", "--ignore-daemonsets", "--delete-emptydir-data",
                                  "--timeout=60s")
        namespace.wait_rolled_out("deployment/set")
        pods = [pod for pod in namespace.list("pods") if "deletionTimestamp" not in pod["metadata"]]
        assert [pod["spec"]["nodeName"] for pod in pods] == ["node2"] * 2
        for pod in pods:
            after = namespace.count(pod["metadata"]["name"])
            assert after["born"] == before["born"]
    finally:
        namespace.cluster.kubectl("uncordon", "node1")
