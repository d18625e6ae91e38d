"""A node whose services begin in any order, as nothing but their units would keep it: after the loss of power, and
while its containers run on. What ends for want of another is started again, as systemd does it."""

import itertools
import time

import pytest

from e2e.cluster.workload import checkpointed
from e2e.wait import until

SERVICES = ["containerd", "stasisd", "kubelet"]
ORDERS = pytest.mark.parametrize("order", list(itertools.permutations(SERVICES)), ids="-".join)
ALONE = 3  # seconds in which a service finds out that another is not there


def settled(node, service, since):
    """Whether it does what it can before those that are started after it."""
    answers = {"containerd": lambda: (node.folder / "run/containerd/containerd.sock").exists(),
               "stasisd": lambda: (node.folder / "run/stasis/stasis.sock").exists(),
               "kubelet": node.kubelet_is_healthy}[service]
    return not node.runs(service) or answers() or time.monotonic() > since + ALONE


def start_in(order):
    """A function that has the services of a node run which it starts in this order."""
    def start(node):
        for service in order:
            node.launch(service)
            since = time.monotonic()
            until(lambda service=service, since=since: settled(node, service, since), what=service, every=0.05)

        def healthy():
            for service in order:
                if not node.runs(service):
                    node.launch(service)
            return node.kubelet_is_healthy()

        until(healthy, 120, f"the kubelet of {node.name}", every=1)
        if not node.runs("kube-proxy"):
            node.launch("kube-proxy")
    return start


def begin(namespace):
    """A pod of node2 that goes on from a checkpoint of `one`, which is there, too, and what they say."""
    namespace.run("one", "node2")
    before = namespace.count("one")
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image)
    assert namespace.count("two") == {"count": before["count"] + 1, "born": before["born"]}
    return before, image


def can_be_checkpointed(namespace, *pods):
    for pod in pods:
        until(lambda pod=pod: checkpointed(namespace, pod), 60, what=f"a checkpoint of {pod}", every=0.5)


@ORDERS
def test_after_a_loss_of_power_pods_go_on_in_whichever_order_services_start(namespace, order):
    before, image = begin(namespace)
    namespace.cluster.reboot("node2", start_in(order))
    again = lambda pod: namespace.status(pod)["restartCount"] > 0 and namespace.status(pod)["ready"]
    until(lambda: again("one") and again("two"), 180, what="the pods after the reboot", every=0.3)
    assert namespace.count("one")["born"] != before["born"]
    assert namespace.count("two") == {"count": before["count"] + 1, "born": before["born"]}
    assert namespace.status("two")["image"] == image
    can_be_checkpointed(namespace, "one", "two")


@ORDERS
def test_containers_run_on_in_whichever_order_services_are_started_again(namespace, order):
    before, image = begin(namespace)
    node = namespace.cluster.nodes["node2"]
    of = lambda pod: (namespace.status(pod)["containerID"], namespace.status(pod)["restartCount"])
    containers = [of("one"), of("two")]
    for service in reversed(order):
        node.stop(service)
    start_in(order)(node)
    # A pod that the kubelet runs next tells that it has looked at those of before.
    namespace.run("three", "node2")
    assert [of("one"), of("two")] == containers
    assert namespace.status("two")["image"] == image
    assert namespace.count("one") == {"count": before["count"] + 1, "born": before["born"]}
    assert namespace.count("two") == {"count": before["count"] + 2, "born": before["born"]}
    can_be_checkpointed(namespace, "one", "two")
