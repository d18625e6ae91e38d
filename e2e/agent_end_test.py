"""An agent that is stopped while it makes a checkpoint, as by `systemctl restart stasisd`, at every stage of it."""

import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.hold import held, tasks
from e2e.paths import STASIS, STASISD
from e2e.testbed.testbed import Testbed
from e2e.wait import until

pytestmark = pytest.mark.skipif(not STASISD.exists(), reason="stasisd is not built")


class Activated(Testbed):
    """A testbed that holds the socket of its stasisd, as systemd does: sd_listen_fds(3)."""

    def start(self, name, command):
        if name != "stasisd":
            return super().start(name, command)
        if "socket" not in vars(self):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.bind(str(self.folder / "stasis.sock"))
            self.socket.listen()
            # Any number but 3, which is to be made of it.
            self.passed = os.dup2(self.socket.fileno(), 100)
        with open(self.folder / "stasisd.log", "ab") as log:
            self.services[name] = subprocess.Popen(
                ["bash", "-c", f'exec 3<&{self.passed} {self.passed}<&-; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "bash",
                 *map(str, command)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                pass_fds=[self.passed])
        return self.services[name]


@pytest.fixture(scope="module")
def node():
    with Activated(shim_options=["--shutdown-grace", 0]) as testbed:
        yield testbed


@pytest.fixture
def counter(node):
    pod = node.cri.run_pod("counter")
    container = node.cri.run(pod, "main", node.image("busybox"), command=[
        "sh", "-c", "x=$(yes abcdefgh | head -c 40000000); while :; do i=$((i + 1)); echo $i >/count; sleep 0.1; done"])
    until(lambda: node.cri.exec(container, "cat", "/count").code == 0, what="its memory")
    yield container
    node.runtime.remove_pod(pod.id)


def counts(node, container):
    """Whether it counts on."""
    count = lambda: int(node.cri.exec(container, "cat", "/count").out or 0)
    before = count()
    until(lambda: count() > before, what="a program that runs")
    return True


# By the system call that comes first then: strace shows their order.
STAGES = {
    "it is looked at": ("pidfd_getfd", 1), "it is made ready": ("process_vm_readv", 1),
    "memory is copied": ("pwrite64", 5), "it stands still": ("listxattr", 1), "it is whole": ("uname", 1),
    "it is synced": ("fsync", 1), "it is named": ("linkat", 1), "its name is synced": ("fsync", 2),
}
NAMED = [("linkat", 1), ("fsync", 2)]  # then it is too late


@pytest.mark.parametrize("stage", STAGES)
def test_the_end_of_the_agent_ends_a_checkpoint_and_harms_nobody(node, counter, tmp_path, stage):
    agent, pid = node.services["stasisd"], node.cri.pid(counter)
    ask = lambda name: node.cri.call("CheckpointContainer", container_id=counter, location=str(tmp_path / name))
    with ThreadPoolExecutor() as pool:
        with held(agent.pid, *STAGES[stage]) as hold:
            asked = pool.submit(ask, "a.tar")
            hold.wait()
            agent.send_signal(signal.SIGTERM)
            until(lambda: node.service_log("stasisd", 1).endswith("under way are given up"), what="the end of its time")
        error = asked.exception(30)
        assert agent.wait(30) == 0
        assert {of["TracerPid"] for of in tasks(pid, "status").values()} == {"0"}
        if STAGES[stage] in NAMED:
            assert error is None
            subprocess.run([STASIS, "verify", tmp_path / "a.tar"], check=True, capture_output=True)
        else:
            assert error.code == "Unavailable" and "ask again when it is back" in error.message, error
            assert list(tmp_path.iterdir()) == []
        waits = pool.submit(ask, "b.tar")  # in the socket, which nobody listens to
        node.start_shim()
        waits.result(60)
    assert counts(node, counter) and node.cri.pid(counter) == pid
