"""What the agent tells the cluster: Events on pods, labels and a condition of its node, with the chart's rights."""

import json
import subprocess

import pytest

from e2e.cluster.kubectl import KubectlError
from e2e.paths import CACHE, ROOT
from e2e.wait import until

HELM = CACHE / "bin" / "helm"
TOKEN = "/var/lib/stasis/token"
LABELS = ["cpu-level", "pagemap-scan", "userfaultfd-wp-async", "version"]

pytestmark = pytest.mark.skipif(not HELM.exists(), reason="helm is not built: ./dev manifests builds it")


class Agent:
    """stasisd of node1 with an account of the chart's."""

    def __init__(self, cluster, namespace):
        self.cluster, self.node = cluster, cluster.nodes["node1"]
        self.rights = subprocess.run(
            [HELM, "template", "stasis", ROOT / "charts" / "stasis", f"--namespace={namespace.name}",
             "--show-only=templates/rbac.yaml"], check=True, capture_output=True, text=True).stdout
        namespace.kubectl("apply", "-f", "-", stdin=self.rights)
        namespace.run("installer", serviceAccountName="stasis")
        self.token = namespace.kubectl("create", "token", "stasis", "--bound-object-kind=Pod",
                                       "--bound-object-name=installer").strip()
        self.node.path(TOKEN).write_text(self.token)
        self.restart("--api-server", cluster.control_plane.server, "--api-server-ca", cluster.authority.certificate,
                     "--api-server-token-file", TOKEN, "--node-name", "node1")

    def restart(self, *options):
        self.node.stasisd_options = options
        self.node.stop("stasisd")
        self.node.start_stasisd()

    def refusal(self, method, path, **fields):
        """What the API server says when the agent's token is used for something else; "": nothing."""
        kind = "strategic-merge-patch+json" if method == "PATCH" else "json"
        done = subprocess.run(
            ["curl", "-sS", "--cacert", self.cluster.authority.certificate, "-X", method, "--data", json.dumps(fields),
             "-H", f"Authorization: Bearer {self.token}", "-H", f"Content-Type: application/{kind}",
             f"{self.cluster.control_plane.server}{path}?dryRun=All"], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        return answer["message"] if answer["kind"] == "Status" else ""


@pytest.fixture
def agent(cluster, namespace):
    made = Agent(cluster, namespace)
    yield made
    made.restart()
    cluster.kubectl("delete", "-f", "-", "--ignore-not-found", "--wait=false", stdin=made.rights)


def told(namespace, pod, reason):
    """The events of one reason about a pod, once there is one."""
    def found():
        return [each for each in namespace.list("events")
                if (each["involvedObject"]["name"], each["reason"]) == (pod, reason)]
    return until(found, what=f"event {reason} of {pod}")


def node_of(cluster):
    node = cluster.kubectl.get("node", "node1")
    labels = {key.removeprefix("stasis.dev/"): value for key, value in node["metadata"]["labels"].items()
              if key.startswith("stasis.dev/")}
    return labels, [each for each in node["status"]["conditions"] if each["type"] == "StasisReady"]


@pytest.mark.short
def test_describe_pod_tells_of_a_checkpoint_and_of_a_restore(agent, namespace):
    namespace.run("one")
    image = namespace.checkpoint_image("one")
    namespace.run("two", image=image)
    told(namespace, "one", "Checkpointed")
    told(namespace, "two", "Restored")
    before = namespace.kubectl("describe", "pod", "one")
    assert "container main is being checkpointed" in before
    assert "MiB, frozen for" in before and "/var/lib/kubelet/checkpoints/checkpoint-one_" in before
    after = namespace.kubectl("describe", "pod", "two")
    assert "container main is being restored from" in after and f"restored from {image.partition(':saved')[0]}" in after
    [event] = told(namespace, "one", "Checkpointed")
    assert event["source"] == {"component": "stasisd", "host": "node1"} and event["type"] == "Normal"


def test_failures_say_why_and_are_counted_in_one_event(agent, namespace):
    namespace.run("one")
    agent.node.checkpoints.mkdir(mode=0o700, exist_ok=True)
    agent.node.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/var/lib/kubelet/checkpoints")
    try:
        for _ in range(3):
            with pytest.raises(KubectlError):
                namespace.raw_checkpoint("one")
    finally:
        agent.node.run("umount", "/var/lib/kubelet/checkpoints")
    [event] = until(lambda: [each for each in told(namespace, "one", "CheckpointFailed") if each["count"] == 3],
                    what="an event that counts to three")
    assert event["type"] == "Warning" and "no space left" in event["message"].lower()
    assert "(x3 over" in namespace.kubectl("describe", "pod", "one")


def test_a_restore_that_is_refused_over_and_over_is_one_event(agent, namespace):
    namespace.run("one")
    image = namespace.checkpoint_image("one")
    namespace.run("two", image=image, annotations={"stasis.dev/on-restart": "maybe"}, wait=False)
    [event] = until(lambda: [each for each in told(namespace, "two", "RestoreFailed") if each["count"] > 1], 120,
                    what="a second try of the kubelet's")
    assert event["type"] == "Warning" and 'it can be "restore" or "fresh"' in event["message"]
    assert len(told(namespace, "two", "RestoreFailed")) == 1


def test_without_the_api_server_checkpoints_go_on_and_are_told_later(agent, cluster, namespace):
    namespace.run("one")
    agent.node.path(TOKEN).unlink()
    assert namespace.checkpoint("one").exists()
    until(lambda: "events wait for the API server" in agent.node.log("stasisd"), what="a line in the log")
    agent.node.path(TOKEN).write_text(agent.token)
    told(namespace, "one", "Checkpointed")


@pytest.mark.short
def test_the_node_says_what_can_be_done_there_as_long_as_it_can(agent, cluster):
    labels, [condition] = until(lambda: node_of(cluster) if node_of(cluster)[1] else None, what="the condition")
    assert sorted(labels) == LABELS and labels["cpu-level"].startswith("x86-64-v")
    assert (condition["status"], condition["reason"]) == ("True", "RuntimeAnswers")
    agent.node.stop("stasisd")
    assert node_of(cluster) == ({}, [])


def test_the_agents_token_can_do_no_more(agent, cluster, namespace):
    until(lambda: node_of(cluster)[1], what="the condition")
    patch = lambda node, **fields: agent.refusal("PATCH", f"/api/v1/nodes/{node}/status", **fields)
    # A policy is in force soon after it is made.
    until(lambda: "own node alone" in patch("node2", metadata={"labels": {"stasis.dev/version": "9"}}))
    assert "labels stasis.dev/... alone" in patch("node1", metadata={"labels": {"kubernetes.io/arch": "mips"}})
    assert "condition StasisReady alone" in patch("node1", status={"conditions": [{"type": "Ready", "status": "False"}]})
    assert "cannot patch resource" in agent.refusal("PATCH", "/api/v1/nodes/node1", spec={"unschedulable": True})
    pod = {"kind": "Pod", "name": "installer", "namespace": namespace.name}
    event = {"metadata": {"name": "false"}, "involvedObject": pod, "reportingComponent": "kubelet"}
    assert "its own Events" in agent.refusal("POST", f"/api/v1/namespaces/{namespace.name}/events", **event)
