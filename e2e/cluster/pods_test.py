"""What else pods are: restricted, of several containers, with limits, and used through kubectl."""

import json
import signal
import subprocess
import time
import urllib.request

from e2e import journey
from e2e.cluster.kubectl import KubectlError
from e2e.cluster.workload import pod_spec
from e2e.wait import until

RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
              "runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}


def test_a_restricted_pod_gains_nothing_by_its_restore(namespace):
    """In a namespace that enforces the restricted Pod Security Standard."""
    namespace.cluster.kubectl("label", "namespace", namespace.name, "pod-security.kubernetes.io/enforce=restricted")
    container = {"securityContext": RESTRICTED}
    namespace.run("one", container=container)
    rights = lambda pod: [line for line in namespace.ask(pod, "/read?/proc/self/status").splitlines()
                          if line.split(":")[0] in ("Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")]
    before, count = rights("one"), namespace.count("one")
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image, container=container)
    assert rights("two") == before and "CapEff:\t0000000000000000" in before
    assert namespace.count("two")["born"] == count["born"]


def test_both_containers_of_a_pod_go_on_each_from_its_checkpoint(namespace):
    def spec(main, other):
        return pod_spec(main, "node1", containers=[
            {"name": "main", "image": main}, {"name": "other", "image": other, "command": [
                "sh", "-c", "n=0; while :; do echo $n >/tmp/n; n=$((n + 1)); sleep 0.05; done"]}])

    def pod(name, *images):
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec(*images)}

    number = lambda name: int(namespace.kubectl("exec", name, "-c", "other", "--", "cat", "/tmp/n").strip() or 0)
    namespace.apply(pod("one", namespace.cluster.image("counter"), namespace.cluster.image("busybox")))
    namespace.wait_ready("one")
    count = namespace.count("one")
    reached = until(lambda: number("one"), what="the loop")
    registry = namespace.cluster.control_plane.registry.address
    images = []
    for name in ("main", "other"):
        images.append(f"{registry}/{namespace.name}/{name}:saved")
        journey.stasis("image", namespace.checkpoint("one", name), "--push", images[-1], "--plain-http")
    namespace.remove("pod", "one")
    namespace.apply(pod("two", *images))
    namespace.wait_ready("two")
    assert namespace.count("two") == {"count": count["count"] + 1, "born": count["born"]}
    restored = number("two")
    assert restored >= reached
    until(lambda: number("two") > restored, what="the loop going on")


def test_kubectl_works_on_a_restored_pod(namespace):
    namespace.run("one")
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image)
    kubectl = namespace.cluster.kubectl
    assert "counter.py" in namespace.kubectl("exec", "two", "--", "cat", "/proc/1/cmdline")
    forward = subprocess.Popen(
        [kubectl.program, "--kubeconfig", kubectl.kubeconfig, "-n", namespace.name, "port-forward", "pod/two", ":8080"],
        stdout=subprocess.PIPE, text=True)
    try:
        port = forward.stdout.readline().split()[2].rpartition(":")[2]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/count", timeout=10) as response:
            assert json.load(response)["count"] == 1
    finally:
        forward.send_signal(signal.SIGTERM)
        forward.wait()
    before = time.monotonic()
    namespace.remove("pod", "two")
    assert time.monotonic() - before < 30


def test_limits_are_the_new_pods_and_its_use_is_measured(namespace):
    namespace.run("one", container={"resources": {"limits": {"memory": "64Mi"}}})
    image = namespace.checkpoint_image("one")
    namespace.run("two", "node2", image, container={"resources": {"limits": {"memory": "96Mi", "cpu": "500m"}}})
    namespace.count("two")
    assert namespace.status("two")["resources"]["limits"]["memory"] == "96Mi"

    def used():
        try:
            summary = json.loads(namespace.cluster.kubectl("get", "--raw", "/api/v1/nodes/node2/proxy/stats/summary"))
        except KubectlError:  # the kubelet has just begun and has measured nothing
            return []
        pods = [pod for pod in summary["pods"] if pod["podRef"]["namespace"] == namespace.name]
        return [one.get("memory", {}).get("workingSetBytes", 0) for pod in pods for one in pod.get("containers", [])]

    # cAdvisor looks at a container every ten seconds or so.
    [size, *_] = until(lambda: [size for size in used() if size], 60, "the measurement", every=0.5)
    assert 2**20 < size < 96 * 2**20
