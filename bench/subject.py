"""The program that is measured, and what Stasis and CRIU do to it: the same words, for both."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from e2e import stats
from e2e.host import descendants
from e2e.paths import STASIS, TARGETS
from e2e.peers.tools import CRIU
from e2e.wait import until

WORKLOAD = TARGETS / "bench_workload"
COMMANDS = {
    "Stasis": {"dump": [STASIS, "checkpoint", "--tcp-close"], "restore": [STASIS, "restore", "--tcp-close"]},
    "CRIU": {"dump": [*CRIU, "dump", "--tcp-close", "-o", "dump.log"],
             "restore": [*CRIU, "restore", "--tcp-close", "-o", "restore.log"]},
}
DEADLINE = 180  # seconds; whoever takes longer has failed


class Failed(Exception):
    """A checkpoint or a restore that did not succeed."""


@dataclass
class Dump:
    frozen: float  # all in milliseconds
    total: float
    peak_kib: int  # of the one process that made it


def run(words, images):
    """How long a command took, and the most memory that it had."""
    with open(images.parent / "said", "wb") as said:
        start = time.monotonic()
        process = subprocess.Popen([str(word) for word in words], cwd="/", stdin=subprocess.DEVNULL,
                                   stdout=said, stderr=said)
        late = threading.Timer(DEADLINE, process.kill)
        late.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            late.cancel()
        took = (time.monotonic() - start) * 1000
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        logs = [path.read_text(errors="replace")[-1500:] for path in [images.parent / "said", *images.glob("*.log")]]
        verb = next(word for word in words if word in ("checkpoint", "dump", "restore"))
        raise Failed(f"{verb} ended with {process.returncode}: " + " ".join(line for line in " ".join(logs).splitlines()
                                                if "Error" in line or "stasis" in line)[:600])
    return took, usage.ru_maxrss


class Subject:
    """A program in a folder of its own on the measured disk; the end of the `with` takes all away."""

    def __init__(self, folder, command=None, **shape):
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        words = ("mib", "threads", "processes", "descriptors", "rate", "shared")
        self.command = command or [WORKLOAD, self.folder, *(shape.get(word, 0) for word in words)]
        self.ready = command is None
        self.root = None
        self.images = None

    def __enter__(self):
        process = subprocess.Popen([str(word) for word in self.command], cwd=self.folder,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        self.root = process.pid
        process.returncode = 0  # we wait for it ourselves: after a restore it is not this object's
        try:
            if self.ready:
                until(self._is_ready, seconds=120, what="the workload")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _is_ready(self):
        if os.waitid(os.P_PID, self.root, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise Failed("the workload ended: does this machine allow what it asks for?")
        return (self.folder / "ready").exists()

    def dump(self, who, fate="--leave-running"):
        if self.images:
            shutil.rmtree(self.images)
        self.images = self.folder / "images"
        self.images.mkdir()
        os.sync()  # what others wrote is not this one's to wait for
        tids = [self.root, *descendants(self.root)]
        fates = [fate] if fate == "--leave-running" or who == "Stasis" else []  # CRIU kills unless told
        took, peak = run([*COMMANDS[who]["dump"], "--tree", self.root, *fates, "-D", self.images], self.images)
        if fate == "--kill":
            self._gone(tids)
        frozen = stats.read((self.images / "stats-dump").read_bytes())["frozen_us"] / 1000
        return Dump(frozen, took, peak)

    def restore(self, who, *options):
        """How long until it ran."""
        took, self.peak_kib = run([*COMMANDS[who]["restore"], "-d", "-S", *options, "-D", self.images],
                                  self.images)
        return took

    def _gone(self, pids):
        def none_left():
            try:
                os.waitpid(self.root, os.WNOHANG)
            except ChildProcessError:
                pass
            return not any(os.path.exists(f"/proc/{pid}") for pid in pids)

        until(none_left, what="the end of the tree")

    def __exit__(self, *_):
        pids = descendants(self.root) if os.path.exists(f"/proc/{self.root}") else []
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._gone(pids)
        shutil.rmtree(self.folder, ignore_errors=True)
