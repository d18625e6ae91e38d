"""Options of `stasis checkpoint` and `stasis restore` that CRIU has too, by its names."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from e2e.host import Program
from e2e.paths import STASIS
from e2e.wait import until


def stasis(*words):
    return subprocess.run([STASIS, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=60, check=False)


@pytest.fixture
def images(folder):
    path = folder / "images"
    path.mkdir()
    return path


def test_the_log_tells_each_step_and_stays_beside_the_images(start, images):
    sleeper = start("sleep", "60")
    done = stasis("checkpoint", "-t", sleeper.pid, "-D", images, "-o", "dump.log", "-v4", "--kill")
    assert done.returncode == 0, done.stderr
    log = (images / "dump.log").read_text()
    assert "stands still" in log and f"pid {sleeper.pid} fd 0" in log and log.endswith("info: checkpointed\n")
    sleeper.parent.wait(10)
    sleeper.restore(images)


def test_a_refusal_is_in_the_log_and_does_not_hinder_the_next_try(images):
    for _ in range(2):
        assert stasis("checkpoint", "--pid", os.getpid(), "-D", images, "-o", "dump.log").returncode == 1
        assert "error: pid" in (images / "dump.log").read_text()
    assert os.listdir(images) == ["dump.log"]


def test_verbosity_without_a_log_file_goes_to_standard_error(images):
    done = stasis("checkpoint", "--pid", os.getpid(), "-D", images, "-v1")
    assert [line.split(" ")[1] for line in done.stderr.splitlines()] == ["error:", "pid"]
    assert stasis("checkpoint", "--pid", 1, "-D", images, "-v9").returncode == 2


def test_a_sibling_is_a_child_of_who_called_and_may_be_left_stopped(start, images):
    sleeper = start("sleep", "60")
    assert stasis("checkpoint", "-t", sleeper.pid, "-D", images, "--kill").returncode == 0
    sleeper.parent.wait(10)
    done = stasis("restore", "-D", images, "--restore-detached", "--restore-sibling", "--leave-stopped")
    assert done.returncode == 0, done.stderr
    _, status = os.waitpid(sleeper.pid, os.WUNTRACED)  # only a parent may
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP
    os.kill(sleeper.pid, signal.SIGCONT)
    os.kill(sleeper.pid, signal.SIGTERM)
    assert os.waitpid(sleeper.pid, 0)[1] == signal.SIGTERM
    assert stasis("restore", "-D", images, "--restore-sibling").returncode == 2  # who would wait?


def test_another_root_directory(folder, images):
    root = folder / "root"
    root.mkdir()
    shutil.copy("/usr/bin/busybox", root / "busybox")
    (root / "file").write_text("kept")
    script = "exec 3<file <&3 >seen 2>&1; until [ -e go ]; do /busybox sleep 0.02; done; read -r line <&3; echo $line"
    program = Program(folder, ["chroot", root, "/busybox", "sh", "-c", script])
    until(lambda: Path(f"/proc/{program.pid}/fd/3").exists(), what="the descriptor")
    assert stasis("checkpoint", "-t", program.pid, "-D", images, "--kill").returncode == 0
    program.parent.wait(10)
    done = stasis("restore", "-D", images, "--root", root / "nowhere")
    assert done.returncode == 1 and "nowhere" in done.stderr
    with subprocess.Popen([STASIS, "restore", "-D", images, "--root", root]) as restored:
        (root / "go").touch()
        assert restored.wait(20) == 0
    assert (root / "seen").read_text() == "kept\n"


def test_an_archive_leaves_room_on_its_disk(start, folder):
    """More than any disk of a running system has."""
    sleeper = start("sleep", "60")
    words = ["checkpoint", "--pid", sleeper.pid, "--output", folder / "a.tar"]
    done = stasis(*words, "--checkpoint-min-free", 99)
    assert done.returncode == 1 and "--checkpoint-min-free" in done.stderr, done.stderr
    assert not list(folder.glob("*.tar*"))
    assert stasis(*words, "--checkpoint-min-free", 0).returncode == 0
