"""What the tests share: programs on the host, and one testbed for all tests of containers."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from e2e.host import Program
from e2e.paths import STASIS, STASISD
from e2e.testbed.testbed import Testbed

# What a program goes through before it verifies itself: plain must work first, then a dump that leaves
# it as it was, then dump and restore, then both once more.
PASSES = {"plain": []}
if STASIS.exists():
    PASSES |= {"left": ["--leave-running"], "once": ["--kill"], "twice": ["--kill", "--kill"]}
collect_ignore = [] if STASIS.exists() else [
    "container_checkpoint_test.py", "container_bad_input_test.py", "container_command_test.py",
    "container_targets_test.py"]


def pytest_generate_tests(metafunc):
    if "passes" in metafunc.fixturenames:
        metafunc.parametrize("passes", PASSES.values(), ids=PASSES.keys())


@pytest.fixture
def folder():
    """A folder of the test's own, which programs of any user can enter (pytest's are for root alone)."""
    path = Path(tempfile.mkdtemp(prefix="stasis-test-"))
    path.chmod(0o755)
    yield path
    if (path / "cgroup").is_mount():
        remove_hierarchy(path / "cgroup")
    shutil.rmtree(path)


def remove_hierarchy(mount_point):
    """Of cgroups, which outlives its mount, in every process, as long as it has any."""
    for group in sorted(mount_point.rglob("*/"), reverse=True):
        group.rmdir()
    subprocess.run(["umount", mount_point], check=True)


@pytest.fixture
def place(folder):
    """A folder for what a test makes."""
    (folder / "place").mkdir()
    return folder / "place"


@pytest.fixture
def mounted(place):
    """Mounts a tmpfs on the place."""
    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=False,
                              capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(done.stderr)
        return place

    yield mount
    subprocess.run(["umount", "--lazy", place], stderr=subprocess.DEVNULL, check=False)


@pytest.fixture
def start(folder):
    """Starts programs in the test's folder; none outlives the test."""
    programs = []

    def start_program(*command, **popen):
        programs.append(Program(folder, command, **popen))
        return programs[-1]

    yield start_program
    for program in programs:
        program.end()


@pytest.fixture(scope="session")
def bed():
    """containerd, a registry and, once built, stasisd in front of containerd."""
    with Testbed(shim=STASISD.exists()) as testbed:
        yield testbed


@pytest.fixture
def pods(bed):
    """Runs pods that are removed after the test, whatever became of them."""
    made = []

    def run_pod(name):
        made.append(bed.cri.run_pod(name))
        return made[-1]

    yield run_pod
    left = {pod["id"] for pod in bed.runtime.call("ListPodSandbox").get("items", [])}
    for pod in made:
        if pod.id in left:
            bed.runtime.remove_pod(pod.id)
        # As a kubelet does: the next pod of this name begins a log of its own.
        shutil.rmtree(bed.logs / pod.config["metadata"]["name"], ignore_errors=True)
