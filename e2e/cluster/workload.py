"""The workload of the tests: a program that counts, in a namespace of its own, and what is asked of it."""

import json
import urllib.error
import urllib.request

from e2e import journey
from e2e.cluster.kubectl import KubectlError
from e2e.wait import until


class Refused(Exception):
    """The program answered with an error."""


class Namespace:
    """What one test makes in a cluster."""

    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name
        cluster.kubectl("create", "namespace", name)
        # Pods are refused until the controllers made their service account.
        until(lambda: self.list("serviceaccounts"), what="the service account", every=0.05)

    def kubectl(self, *words, **options):
        return self.cluster.kubectl("-n", self.name, *words, **options)

    def get(self, *words):
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def list(self, kind):
        return self.get(kind)["items"]

    def apply(self, *objects):
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List",
                                                           "items": list(objects)}))

    def run(self, name, node="node1", image=None, annotations=None, wait=True, container=None, **spec):
        """Runs a pod with the counter, or one that goes on from a checkpoint image."""
        self.apply({"apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": name, "annotations": annotations or {}},
                    "spec": pod_spec(image or self.cluster.image("counter"), node, container, **spec)})
        return self.wait_ready(name) if wait else None

    def wait_ready(self, name, seconds=150):
        try:
            self.kubectl("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={seconds}s")
        except KubectlError as error:
            raise AssertionError(f"{error}\n{self.kubectl('describe', 'pod', name)}") from None
        return self.get("pod", name)

    def wait_rolled_out(self, what, seconds=150):
        try:
            self.kubectl("rollout", "status", what, f"--timeout={seconds}s")
        except KubectlError as error:
            logs = "\n".join(f"{node.name}: {node.log('stasisd', 8)}" for node in self.cluster.nodes.values())
            raise AssertionError(f"{error}\n{self.kubectl('get', 'pods,events', '-o', 'wide')}\n{logs}") from None

    def remove(self, *what):
        self.kubectl("delete", *what, "--grace-period=1", "--wait=true")

    def ask(self, pod, path):
        """An answer of the program in a pod, once it listens."""
        address = self.get("pod", pod)["status"]["podIP"]

        def answer():
            try:
                with urllib.request.urlopen(f"http://{address}:8080{path}", timeout=10) as response:
                    return [response.read().decode()]
            except urllib.error.HTTPError as error:
                raise Refused(error.read().decode()) from None
            except urllib.error.URLError as error:
                if isinstance(error.reason, ConnectionRefusedError):
                    return []
                raise

        return until(answer, what=f"an answer of {pod}", every=0.02)[0]

    def count(self, pod):
        return json.loads(self.ask(pod, "/count"))

    def raw_checkpoint(self, pod, container="main", query=""):
        """The kubelet's answer, by way of the API server."""
        node = self.get("pod", pod)["spec"]["nodeName"]
        path = f"/api/v1/nodes/{node}/proxy/checkpoint/{self.name}/{pod}/{container}{query}"
        return json.loads(self.cluster.kubectl("create", "--raw", path, "-f", "/dev/null"))

    def checkpoint(self, pod, container="main"):
        """The archive, as this machine sees the node's file."""
        node = self.get("pod", pod)["spec"]["nodeName"]
        [path] = self.raw_checkpoint(pod, container)["items"]
        return self.cluster.nodes[node].folder / path.lstrip("/")

    def checkpoint_image(self, pod, container="main"):
        """A checkpoint, pushed as an image: its reference."""
        reference = f"{self.cluster.control_plane.registry.address}/{self.name}/{pod}:saved"
        journey.stasis("image", self.checkpoint(pod, container), "--push", reference, "--plain-http")
        return reference

    def status(self, pod, container="main"):
        [found] = [one for one in self.get("pod", pod)["status"]["containerStatuses"] if one["name"] == container]
        return found


def checkpointed(namespace, pod):
    """The answer of a checkpoint, or nothing while a service is away."""
    try:
        return namespace.raw_checkpoint(pod)
    except KubectlError:  # the kubelet connects again by itself
        return None


def pod_spec(image, node=None, container=None, **spec):
    """A pod with one container, `main`; `container` and `spec` say more of either."""
    return {"terminationGracePeriodSeconds": 1, **({"nodeName": node} if node else {}),
            "dnsPolicy": "Default", "containers": [{"name": "main", "image": image, **(container or {})}], **spec}


# The scheduler's own spreading is a wish: it may put all pods on the node that has the image already.
SPREAD = {"topologySpreadConstraints": [{
    "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
    "labelSelector": {"matchLabels": {"app": "set"}}}]}


def controller(kind, image, pods=None, **spec):
    """`pods` and `spec` say more of the pods and of the controller."""
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "set"},
            "spec": {"selector": {"matchLabels": {"app": "set"}}, **spec,
                     "template": {"metadata": {"labels": {"app": "set"}}, "spec": pod_spec(image, **(pods or {}))}}}
