"""An agent that ends while it restores a container, at every stage of it: killed, or stopped as by `systemctl
restart stasisd`. No half of a program ever runs, and the kubelet's next try goes on from the checkpoint."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e import journey
from e2e.agent_end_test import Activated
from e2e.hold import held
from e2e.paths import STASISD
from e2e.testbed.cri import CriError
from e2e.views import views
from e2e.wait import until

pytestmark = pytest.mark.skipif(not STASISD.exists(), reason="stasisd is not built")

COUNT = "x=$(yes abcdefgh | head -c 40000000); while :; do i=$((i + 1)); echo $i; sleep 0.1; done"
# By the system call that the call's own thread then makes: strace shows their order.
CREATE = {"it is looked at": ("getdents64", 1), "it is made": ("fsync", 1), "it is remembered": ("fsync", 2)}
START = {
    "it is asked for": ("fsync", 1), "it begins": ("fsync", 2), "files of its root are written": ("ftruncate", 1),
    "the placeholder is taken": ("process_vm_writev", 1), "files are opened": ("pidfd_getfd", 1),
    "half of its memory is there": ("ioctl", 30),
    "it runs": ("fsync", 3), "it is known to run": ("fsync", 4),
}
RUNS = ["it runs", "it is known to run"]
ENDS = pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)


@pytest.fixture(scope="module")
def node():
    with Activated(shim_options=["--shutdown-grace", 0]) as testbed:
        yield testbed


def counts(node, log):
    path = node.logs / "restored" / log
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[3]) for line in lines if "stasis: not restored" not in line]


@pytest.fixture(scope="module")
def saved(node, tmp_path_factory):
    """The image of a checkpoint of a program that counts and has changed its root, and what it had said by then."""
    pod = node.cri.run_pod("restored")
    container = node.cri.run(pod, "main", node.image("busybox"), log_path="saved.log",
                             command=["sh", "-c", f"echo changed >/changed; {COUNT}"])
    until(lambda: len(counts(node, "saved.log")) > 2, what="numbers")
    archive = tmp_path_factory.mktemp("saved") / "a.tar"
    journey.checkpoint(node.cri, container, archive)
    reference = f"{node.registry.address}/saved:1"
    journey.push_image(archive, reference)
    node.runtime.remove_pod(pod.id)
    return reference


class Tries:
    """A pod whose container is tried to be restored as the kubelet does it."""

    def __init__(self, node, image):
        self.node, self.image = node, image
        self.pod = node.cri.run_pod("restored")
        self.attempt = -1
        self.container = None

    def create(self):
        self.attempt += 1
        self.log = f"{self.pod.id}-{self.attempt}.log"
        self.container = self.node.cri.create(self.pod, "main", self.image, log_path=self.log, metadata={
            "name": "main", "attempt": self.attempt})
        return self.container

    def start(self):
        self.node.cri.call("StartContainer", container_id=self.container)

    def state(self):
        return self.node.runtime.status(self.container).get("state", "CONTAINER_CREATED")

    def commands(self):
        """Of what runs in the container."""
        try:
            ours = os.readlink(f"/proc/{self.node.runtime.pid(self.container)}/ns/pid")
        except FileNotFoundError:  # it has not begun, or has ended
            return []
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "ns/pid") == ours:
                    found.append((process / "comm").read_text().strip())
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                pass
        return found

    def goes_on(self):
        """The program does, from where it was saved, and no number is missing or double."""
        until(lambda: len(counts(self.node, self.log)) > 6, what="numbers")
        numbers = counts(self.node, self.log)
        assert numbers == list(range(1, len(numbers) + 1))
        assert self.node.cri.exec(self.container, "cat", "/changed").out == "changed\n"

    def phases(self):
        """What the agent remembers of containers."""
        return {json.loads(path.read_text())["phase"] for path in (self.node.folder / "stasis").rglob("*.json")}


@pytest.fixture
def tries(node, saved):
    made = Tries(node, saved)
    yield made
    if node.services["stasisd"].poll() is not None:
        node.start_shim()
    node.cri.remove_pod(made.pod.id)
    assert made.phases() == set()
    assert views(node.folder / "containerd.sock") == set()


def end_amid(node, call, stage, how):
    """The agent ended when `call` had got as far as `stage`; what became of the call."""
    agent = node.services["stasisd"]
    with ThreadPoolExecutor() as pool:
        with held(agent.pid, *stage) as hold:
            asked = pool.submit(call)
            hold.wait()
            agent.send_signal(how)
            if how == signal.SIGTERM:
                until(lambda: node.service_log("stasisd", 1).endswith("under way are given up"),
                      what="the end of its time")
        error = asked.exception(60)
        # It stops a container that it could not restore, which takes half a minute if anybody still traces that.
        assert agent.wait(20) == (0 if how == signal.SIGTERM else -signal.SIGKILL)
    return error


@ENDS
@pytest.mark.parametrize("stage", CREATE)
def test_the_end_of_the_agent_while_a_container_is_created_leaves_one_that_can_be_made_anew(node, tries, stage, how):
    error = end_amid(node, tries.create, CREATE[stage], how)
    assert how == signal.SIGTERM or error.code == "Unavailable"
    node.start_shim()
    if error is not None:
        assert isinstance(error, CriError)
        tries.create()
    tries.start()
    tries.goes_on()


@ENDS
@pytest.mark.parametrize("stage", START)
def test_the_end_of_the_agent_in_a_restore_leaves_no_half_of_a_program(node, tries, stage, how):
    expected = {"it is asked for": "created", "it is known to run": "restored"}.get(stage, "failed")
    tries.create()
    error = end_amid(node, tries.start, START[stage], how)
    assert how == signal.SIGTERM or error.code == "Unavailable"
    assert (error is None) == (how == signal.SIGTERM and stage in RUNS)
    if stage not in RUNS:
        until(lambda: set(tries.commands()) <= {"stasis-placehol"}, what="the end of what is half made", every=0.05)
    node.start_shim()
    until(lambda: "restoring" not in tries.phases(), what="the end of the restore")
    [phase] = tries.phases()
    assert how == signal.SIGTERM or phase == expected
    if phase == "failed":
        # containerd 1.6 may be putting it away, which ended by itself.
        until(lambda: tries.state() != "CONTAINER_RUNNING", what="its end", every=0.05)
        with pytest.raises(CriError, match="could not be restored"):
            tries.start()
        tries.create()
    if phase != "restored":
        tries.start()
    tries.goes_on()
