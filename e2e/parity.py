"""The same CRI calls to containerd itself and to stasisd in front of it: the answers must not differ.

Each case is a short script of calls. What is drawn anew each time (ids, times, addresses) is replaced by
a word before the two are compared.
"""

import base64
import itertools
import json
import re
import shutil
import sys

from e2e.testbed.cri import NAMESPACES, RESTRICTED, CriError
from e2e.testbed.testbed import Testbed
from e2e.wait import until

DRAWN = [
    (re.compile(r"\b[0-9a-f]{64}\b"), "<id>"),
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f])"), "<uid>"),
    (re.compile(r"\b10\.213\.\d+\.\d+\b"), "<ip>"),
    (re.compile(r"http://127\.0\.0\.1:\d+/(\w+)/[\w-]+"), r"<stream \1>"),
    (re.compile(r"\b\d{19}\b"), "<time>"),
    (re.compile(r"(current|peak) usage: \d+"), r"\1 usage: <bytes>"),
]


def without_drawn(text):
    for pattern, word in DRAWN:
        text = pattern.sub(word, text)
    return text


def in_order(value):
    """Lists of messages in an order of their own: containerd gives them in that of their ids."""
    if isinstance(value, dict):
        return {key: in_order(inner) for key, inner in value.items()}
    if isinstance(value, list):
        inner = [in_order(one) for one in value]
        return sorted(inner, key=lambda one: without_drawn(json.dumps(one, sort_keys=True)))
    return value


class Script:
    """Calls through one socket, and what was answered."""

    def __init__(self, bed, cri):
        self.bed, self.cri = bed, cri
        self.seen = []
        self.name = "parity"  # the same for both, so that messages are the same

    def note(self, what, value):
        self.seen.append((what, without_drawn(json.dumps(in_order(value), sort_keys=True))))

    def call(self, method, keep=None, **request):
        """Calls and notes the answer or error; `keep` picks what of the answer must not differ."""
        try:
            answer = self.cri.call(method, **request)
        except CriError as error:
            self.note(method, {"code": error.code, "message": error.message})
            return {}
        self.note(method, keep(answer) if keep else answer)
        return answer

    def pod(self):
        return self.cri.run_pod(self.name)

    def container(self, pod, script="exec sleep 1000", **config):
        return self.cri.run(pod, "main", self.bed.image("busybox"), command=["sh", "-c", script],
                            **config)

    def state(self, container):
        return self.call("ContainerStatus", container_id=container)["status"]


CASES = []


def case(function):
    CASES.append(function)
    return function


@case
def what_the_runtime_says_of_itself(run):
    run.call("Version")
    run.call("Version", version="v1alpha2")
    run.call("Status")
    run.call("Status", verbose=True, keep=lambda answer: sorted(answer["info"]))
    run.call("RuntimeConfig")
    run.call("UpdateRuntimeConfig",
             runtime_config={"network_config": {"pod_cidr": "10.213.0.0/16"}})


@case
def ids_that_do_not_exist(run):
    for method in ("StartContainer", "StopContainer", "RemoveContainer", "ContainerStatus",
                   "ContainerStats", "ReopenContainerLog", "UpdateContainerResources", "Attach"):
        run.call(method, container_id="nobody")
    for method in ("StopPodSandbox", "RemovePodSandbox", "PodSandboxStatus", "PodSandboxStats",
                   "PortForward"):
        run.call(method, pod_sandbox_id="nobody")
    run.call("ExecSync", container_id="nobody", cmd=["true"])
    run.call("Exec", container_id="nobody", cmd=["true"], stdout=True)
    run.call("CreateContainer", pod_sandbox_id="nobody", config={"metadata": {"name": "x"}},
             sandbox_config={"metadata": {"name": "x"}})


@case
def requests_that_make_no_sense(run):
    run.call("RunPodSandbox")
    run.call("RunPodSandbox", config={"metadata": {"name": "x", "namespace": "y", "uid": "z"}},
             runtime_handler="no-such-handler")
    run.call("CreateContainer")
    run.call("ListContainers", filter={"id": "nobody"})
    run.call("ListPodSandbox", filter={"label_selector": {"no": "one"}})
    run.call("PullImage", image={"image": "NOT/a/Reference"})


@case
def life_of_a_pod(run):
    pod = run.pod()
    run.call("PodSandboxStatus", pod_sandbox_id=pod.id)
    run.call("PodSandboxStatus", pod_sandbox_id=pod.id, verbose=True,
             keep=lambda answer: sorted(json.loads(answer["info"]["info"])))
    run.call("ListPodSandbox", filter={"id": pod.id, "state": {"state": "SANDBOX_READY"}})
    run.call("RunPodSandbox", config=pod.config)  # the name is taken
    run.call("StopPodSandbox", pod_sandbox_id=pod.id)
    run.call("StopPodSandbox", pod_sandbox_id=pod.id)
    run.call("PodSandboxStatus", pod_sandbox_id=pod.id)
    run.call("ListPodSandbox", filter={"state": {"state": "SANDBOX_NOTREADY"}})
    run.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    run.call("RemovePodSandbox", pod_sandbox_id=pod.id)


@case
def life_of_a_container(run):
    pod = run.pod()
    container = run.cri.create(pod, "main", run.bed.image("busybox"), command=["sleep", "1000"])
    run.state(container)
    run.call("StopContainer", container_id=container)
    container = run.cri.create(pod, "second", run.bed.image("busybox"), command=["sleep", "1000"])
    run.call("StartContainer", container_id=container)
    run.call("StartContainer", container_id=container)
    run.state(container)
    run.call("ContainerStatus", container_id=container, verbose=True,
             keep=lambda answer: sorted(json.loads(answer["info"]["info"])))
    run.call("ListContainers", filter={"pod_sandbox_id": pod.id})
    run.call("ListContainers", filter={"state": {"state": "CONTAINER_RUNNING"}})
    run.call("StopContainer", container_id=container, timeout=0)
    run.call("StopContainer", container_id=container, timeout=0)
    run.state(container)
    run.call("RemoveContainer", container_id=container)
    run.call("RemoveContainer", container_id=container)
    run.call("ContainerStatus", container_id=container)


@case
def containers_that_end_or_cannot_start(run):
    pod = run.pod()
    container = run.container(pod, "echo out; echo err >&2; exit 3")
    until(lambda: run.cri.status(container)["state"] == "CONTAINER_EXITED")
    run.state(container)
    log = run.cri.log(pod, "main")
    run.note("log", sorted(re.sub(r"^\S+ ", "", line) for line in log.splitlines()))
    run.call("StartContainer", container_id=container)
    broken = run.cri.create(pod, "broken", run.bed.image("busybox"), command=["/no/such/program"])
    run.call("StartContainer", container_id=broken)
    run.state(broken)


@case
def names_that_are_taken(run):
    pod = run.pod()
    run.container(pod)
    config = {"metadata": {"name": "main"}, "image": {"image": run.bed.image("busybox")}}
    run.call("CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
    config["metadata"] = {"name": "main", "attempt": 1}
    run.call("CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
    config["image"] = {"image": "127.0.0.1:1/missing:1"}
    config["metadata"] = {"name": "other"}
    run.call("CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)


@case
def commands_in_a_container(run):
    container = run.container(run.pod())
    execute = lambda *cmd, **more: run.call("ExecSync", container_id=container, cmd=cmd, **more)
    execute("echo", "hello")
    execute("sh", "-c", "echo out; echo err >&2; exit 7")
    execute("head", "-c", "100000", "/dev/zero")
    execute("no-such-command", keep=lambda answer: answer)
    execute()
    execute("sleep", "100", timeout=1)
    try:
        run.cri.call("ExecSync", container_id=container, cmd=["sleep", "100"], deadline=1)
    except CriError as error:  # the client gives up, or the runtime just before it: both see the deadline
        run.note("deadline", error.code in ("DeadlineExceeded", "Unknown"))
    execute("echo", "still here")


@case
def images(run):
    name = run.bed.image("python")
    run.call("ImageStatus", image={"image": name})
    run.call("PullImage", image={"image": name})
    run.call("PullImage", image={"image": name.replace("python", "missing")})
    status = run.call("ImageStatus", image={"image": name})
    run.call("ImageStatus", image={"image": status["image"]["id"]}, verbose=True)
    run.call("ListImages", filter={"image": {"image": name}})
    run.call("ListImages")
    run.call("ImageFsInfo", keep=lambda answer: answer["image_filesystems"][0]["fs_id"])
    run.call("RemoveImage", image={"image": name})
    run.call("RemoveImage", image={"image": name})
    run.call("ImageStatus", image={"image": name})


@case
def logs_that_are_rotated(run):
    pod = run.pod()
    container = run.container(pod, "while :; do echo tick; sleep 0.01; done")
    log = run.cri.logs / run.name / "main.log"
    until(log.exists)
    log.rename(log.with_suffix(".1"))
    run.call("ReopenContainerLog", container_id=container)
    until(lambda: log.exists() and log.stat().st_size)
    run.call("StopContainer", container_id=container, timeout=0)
    run.call("ReopenContainerLog", container_id=container)


@case
def addresses_of_streams(run):
    pod = run.pod()
    container = run.container(pod)
    run.call("Exec", container_id=container, cmd=["sh"], stdout=True)
    run.call("Exec", container_id=container, cmd=["sh"], tty=True, stderr=True)
    run.call("Attach", container_id=container, stdout=True)
    run.call("PortForward", pod_sandbox_id=pod.id, port=[80])


@case
def resources(run):
    pod = run.pod()
    container = run.container(pod, linux={
        "resources": {"memory_limit_in_bytes": "67108864", "cpu_shares": "512"},
        "security_context": NAMESPACES})
    run.state(container)
    run.call("UpdateContainerResources", container_id=container,
             linux={"memory_limit_in_bytes": "134217728", "cpu_shares": "256"})
    run.state(container)
    run.call("UpdateContainerResources", container_id=container,
             linux={"memory_limit_in_bytes": "1"}, keep=bool)
    attributes = lambda answer: answer["stats"]["attributes"]
    run.call("ContainerStats", container_id=container, keep=attributes)
    run.call("PodSandboxStats", pod_sandbox_id=pod.id, keep=attributes)
    run.call("ListContainerStats", filter={"id": container},
             keep=lambda answer: [stats["attributes"] for stats in answer["stats"]])


@case
def rights_of_a_container(run):
    for security in ({}, RESTRICTED, {"privileged": False, "supplemental_groups": ["77"]},
                     {"capabilities": {"add_capabilities": ["NET_ADMIN"]}}):
        pod = run.pod()
        container = run.container(pod, security=security)
        answer = run.cri.exec(container, "grep", "-E", "^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)",
                              "/proc/1/status")
        run.note(str(security), answer.out)
        run.cri.remove_pod(pod.id)


@case
def events_and_metrics(run):
    run.call("GetContainerEvents", deadline=1)
    run.call("ListMetricDescriptors")
    run.call("ListPodSandboxMetrics")


@case
def messages_above_the_default_limit(run):
    text = base64.b64encode(bytes(range(256)) * 15_000).decode()  # 5 MB; gRPC's own limit is 4 MiB
    pod = run.pod()
    container = run.cri.create(pod, "main", run.bed.image("busybox"), annotations={"large": text})
    status = run.cri.status(container)
    run.note("annotation", status["annotations"]["large"] == text)


def compare(bed, function):
    """What a case saw directly and through stasisd; pods that it left are removed each time."""
    seen = []
    for cri in (bed.runtime, bed.cri):
        script = Script(bed, cri)
        try:
            function(script)
        finally:
            for pod in bed.runtime.call("ListPodSandbox").get("items", []):
                bed.runtime.remove_pod(pod["id"])
            shutil.rmtree(bed.logs, ignore_errors=True)  # a kubelet removes a pod's logs with it
        seen.append(script.seen)
    return seen


def differences(direct, through):
    """The steps that differ, as text."""
    return [f"  {one[0]}\n    direct:  {one[1]}\n    stasisd: {two[1]}"
            for one, two in itertools.zip_longest(direct, through, fillvalue=("missing", ""))
            if one != two]


def main():
    different = 0
    with Testbed() as bed:
        for function in CASES:
            direct, through = compare(bed, function)
            found = differences(direct, through)
            different += len(found)
            print(f"{'differs' if found else 'same':8} {len(direct):3} answers  "
                  f"{function.__name__.replace('_', ' ')}")
            for text in found:
                print(text)
    print(f"{different} answers differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
