"""`stasis check` of a workload: what would be in the way of a checkpoint, while the workload runs on."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from e2e import targets_test
from e2e.paths import STASIS, TARGETS
from e2e.wait import until

OUTSIDE = "the other end of this pipe is held by a process outside the tree"


def check(*words):
    return subprocess.run([STASIS, "check", *map(str, words)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60, check=False)


def test_a_program_that_can_be_checkpointed(start, folder):
    program = start("bash", "-c", "sleep 60 & touch ready; wait")
    until(lambda: (folder / "ready").exists())
    done = check("--pid", program.pid)
    assert done.returncode == 0 and "2 processes" in done.stdout, done
    assert done.stdout.endswith("yes  it can be checkpointed\n")
    program.checkpoint()  # what it said


def test_each_obstacle_is_named_and_nothing_is_stopped(start, folder):
    ends = os.pipe()
    script = "import os, time\nos.open('.', os.O_RDONLY)\nprint(flush=True)\nwhile True: time.sleep(0.001)"
    program = start("/usr/bin/python3", "-c", script, pass_fds=ends[1:])
    until(lambda: program.out)
    status = Path(f"/proc/{program.pid}/status")
    done = check("--pid", program.pid, "--json")
    assert "TracerPid:\t0\n" in status.read_text()
    os.close(ends[1])
    os.close(ends[0])
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["can_be_checkpointed"]
    (obstacle,) = found["obstacles"]
    assert obstacle.startswith(f"pid {program.pid} fd {ends[1]} ") and OUTSIDE in obstacle
    assert done.stderr == "stasis: it cannot be checkpointed: 1 obstacle\n"


@pytest.mark.parametrize("name", targets_test.NAMES)
def test_what_can_be_checkpointed_has_no_obstacle(start, folder, name):
    program = start(TARGETS / name, folder)
    until(lambda: (folder / "ready").exists() or program.parent.poll() is not None, what="ready")
    if program.parent.poll() is None:
        done = check("--pid", program.pid)
        assert done.returncode == 0, done
    (folder / "go").touch()
    assert program.wait() in (0, 77), program.err


def test_processes_that_come_and_go_are_no_obstacle(start, folder):
    script = ("import os\nopen('ready', 'w')\nwhile True:\n    for _ in range(4):\n"
              "        if os.fork() == 0: os._exit(0)\n    for _ in range(4): os.wait()")
    program = start("/usr/bin/python3", "-c", script)
    until(lambda: (folder / "ready").exists())
    for _ in range(40):
        done = check("--pid", program.pid)
        assert done.returncode == 0, done


def test_a_network_of_its_own_is_what_a_restore_has_to_be_told_of(start, folder):
    device = "ip link add own type veth peer name other; tc qdisc add dev own root pfifo"
    program = start("unshare", "--net", "sh", "-c", f"{device}; touch ready; exec sleep 60")
    until(lambda: (folder / "ready").exists())
    done = check("--pid", program.pid)
    assert done.returncode == 0 and "\nnote it has a network namespace of its own" in done.stdout, done
    assert "--join-ns net:" in done.stdout
    assert "network namespace" not in check("--pid", os.getpid()).stdout


def test_what_is_no_workload():
    assert "no process with pid" in check("--pid", 2**22 - 1).stderr
    assert check("--pid", 1, "--container", "x").returncode == 2
    assert "/nowhere" in check("--container", "x", "--runtime-endpoint", "unix:///nowhere").stderr
