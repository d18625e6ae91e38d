"""CRI calls over a socket, by the client in e2e/tools/cri."""

import base64
import json
import subprocess
import uuid
from dataclasses import dataclass

from e2e.paths import CRI
from e2e.wait import until

#: What the kubelet sends, in the pod and in each container of it: a pid namespace for each container.
NAMESPACES = {"namespace_options": {"pid": 1}}

#: The container settings of the restricted Pod Security Standard, and a read-only root besides.
RESTRICTED = {
    "run_as_user": {"value": "1000"},
    "run_as_group": {"value": "1000"},
    "capabilities": {"drop_capabilities": ["ALL"]},
    "no_new_privs": True,
    "readonly_rootfs": True,
    "seccomp": {"profile_type": "RuntimeDefault"},
}


class CriError(Exception):
    """An answer that is an error: its gRPC code and its message."""

    def __init__(self, method, text):
        self.code, _, self.message = text.strip().partition(": ")
        super().__init__(f"{method}: {text.strip()}")


@dataclass
class Pod:
    """A pod sandbox that runs."""

    id: str
    config: dict
    ip: str


@dataclass
class Output:
    """What a command in a container printed, and its exit code."""

    out: str
    err: str
    code: int


class Cri:
    """One CRI socket, with the shapes of request that the kubelet sends."""

    def __init__(self, socket, cgroup, logs):
        self.endpoint = f"unix://{socket}"
        self.cgroup = cgroup
        self.logs = logs

    def call(self, method, deadline=120, **request):
        done = subprocess.run(
            [CRI, "--timeout", f"{deadline}s", self.endpoint, method, "-"],
            input=json.dumps(request), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CriError(method, done.stderr)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return lines[0] if len(lines) == 1 else lines

    def pull(self, image):
        return self.call("PullImage", image={"image": image})["image_ref"]

    def pod_config(self, name, **linux):
        """The configuration of a pod, and the folder of its logs, which the kubelet makes too."""
        (self.logs / name).mkdir(parents=True, exist_ok=True)
        return {
            "metadata": {"name": name, "namespace": "default", "uid": str(uuid.uuid4())},
            "hostname": name,
            "log_directory": str(self.logs / name),
            "labels": {"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default"},
            "linux": {"cgroup_parent": self.cgroup,
                      "security_context": NAMESPACES, **linux},
        }

    def run_pod(self, name, **linux):
        config = self.pod_config(name, **linux)
        pod = self.call("RunPodSandbox", config=config)["pod_sandbox_id"]
        status = self.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]
        return Pod(pod, config, status.get("network", {}).get("ip", ""))

    def create(self, pod, name, image, command=(), args=(), security=None, **config):
        """Pulls the image and creates a container of it; gives the id."""
        self.pull(image)
        config = {
            "metadata": {"name": name},
            "image": {"image": image},
            "command": list(command),
            "args": list(args),
            "labels": {"io.kubernetes.container.name": name},
            "log_path": f"{name}.log",
            "linux": {"security_context": {**NAMESPACES, **(security or {})}},
            **config,
        }
        return self.call("CreateContainer", pod_sandbox_id=pod.id, config=config,
                         sandbox_config=pod.config)["container_id"]

    def run(self, pod, name, image, **config):
        container = self.create(pod, name, image, **config)
        self.call("StartContainer", container_id=container)
        return container

    def status(self, container):
        return self.call("ContainerStatus", container_id=container)["status"]

    def pid(self, container):
        """The container's first process, as the host sees it."""
        answer = self.call("ContainerStatus", container_id=container, verbose=True)
        return json.loads(answer["info"]["info"])["pid"]

    def exec(self, container, *command, timeout=30):
        answer = self.call("ExecSync", container_id=container, cmd=list(command), timeout=timeout)
        text = lambda key: base64.b64decode(answer.get(key, "")).decode()
        return Output(text("stdout"), text("stderr"), answer.get("exit_code", 0))

    def stop(self, container, timeout=10):
        self.call("StopContainer", container_id=container, timeout=timeout)
        return self.status(container)

    def remove_pod(self, pod_id):
        """As the kubelet does, which asks again: to kill a container in the moment in which containerd 1.6
        puts one away that ended by itself fails with "ttrpc: closed"."""
        until(lambda: self._stop_pod(pod_id), what=f"the end of pod {pod_id}", every=0.1)
        self.call("RemovePodSandbox", pod_sandbox_id=pod_id)

    def _stop_pod(self, pod_id):
        try:
            self.call("StopPodSandbox", pod_sandbox_id=pod_id)
            return True
        except CriError as error:
            if "ttrpc: closed" in error.message:
                return False
            raise

    def log(self, pod, name):
        return (self.logs / pod.config["metadata"]["name"] / f"{name}.log").read_text()
