"""Programs that crash, and services and nodes that stop, between checkpoints and restores."""

import signal
import subprocess

import pytest

from e2e.cluster.kubectl import KubectlError
from e2e.cluster.workload import checkpointed, controller
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
