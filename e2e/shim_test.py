"""stasisd may come and go: containers run on, and a client that tries again succeeds."""

import signal
import subprocess
import threading

import pytest

from e2e.paths import STASISD
from e2e.testbed.cri import CriError
from e2e.testbed.testbed import Testbed
from e2e.wait import until

pytestmark = pytest.mark.skipif(not STASISD.exists(), reason="stasisd is not built")


@pytest.fixture(scope="module")
def node():
    """A testbed whose daemons may be killed."""
    with Testbed() as testbed:
        yield testbed


@pytest.fixture
def container(node):
    pod = node.cri.run_pod("survivor")
    yield node.cri.run(pod, "main", node.image("busybox"), command=["sleep", "1000"])
    node.runtime.remove_pod(pod.id)


def answered(cri, container):
    try:
        return cri.pid(container)
    except CriError as error:
        assert error.code == "Unavailable"
        return None


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_restart_of_stasisd_is_not_noticed(node, container, how):
    pid = node.cri.pid(container)
    node.stop_service("stasisd", how)
    node.start_shim()
    assert node.cri.pid(container) == pid
    assert node.cri.exec(container, "echo", "here").out == "here\n"


def test_a_restart_of_the_runtime_is_not_noticed(node, container):
    pid = node.cri.pid(container)
    node.stop_service("containerd", signal.SIGKILL)
    with pytest.raises(CriError) as refused:
        node.cri.call("ListContainers", deadline=5)
    assert refused.value.code in ("Unavailable", "DeadlineExceeded")
    node.start_runtime()
    until(lambda: answered(node.cri, container), seconds=10, what="an answer to a client that retries")
    assert node.cri.pid(container) == pid
    assert node.cri.exec(container, "echo", "here").out == "here\n"


def test_a_runtime_that_is_late_to_greet_is_waited_for(node):
    containerd = node.services["containerd"]
    containerd.send_signal(signal.SIGSTOP)
    try:
        asking = subprocess.Popen([STASISD, "--probe", "--listen", node.runtime.endpoint], stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            asking.wait(0.5)  # longer than the pause between two attempts
    finally:
        containerd.send_signal(signal.SIGCONT)
    assert asking.communicate(timeout=60)[0].startswith(b"containerd")


def test_many_calls_at_once(node, container):
    failed = []

    def ask(number):
        try:
            for _ in range(5):
                assert node.cri.exec(container, "echo", str(number)).out == f"{number}\n"
        except (AssertionError, CriError) as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_second_stasisd_leaves_the_first_alone(node):
    second = node.start("second", [STASISD, "--listen", node.cri.endpoint, "--runtime-endpoint",
                                   node.runtime.endpoint, "--state-dir", node.folder / "stasis"])
    assert second.wait(20) != 0
    assert node.cri.call("Version")["runtime_name"] == "containerd"
