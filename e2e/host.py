"""Programs on the host, and their way through a checkpoint and a restore."""

import os
import signal
import subprocess
from pathlib import Path

from e2e.paths import STASIS
from e2e.wait import until


def descendants(pid):
    """The pid and all that come from it, children after parents."""
    children = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(entry))
    tree, rest = [], [pid]
    while rest:
        at = rest.pop()
        tree.append(at)
        rest += children.get(at, [])
    return tree


def page_servers():
    """The pids of all page servers and their guardians."""
    pids = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            name = Path(f"/proc/{entry}/comm").read_text(encoding="utf-8").strip()
            state = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name == "stasis-pages" and state != "Z":
            pids.append(int(entry))
    return pids


class Program:
    """A program started by a test in a folder of its own, in a session of its own, with its output in
    the files `out` and `err` there."""

    def __init__(self, folder, command, **popen):
        self.folder = folder
        self.images = 0
        self.options = []  # of both stasis checkpoint and stasis restore
        with open(folder / "out", "ab") as out, open(folder / "err", "ab") as err:
            self.parent = subprocess.Popen(
                [str(word) for word in command], cwd=folder, stdin=subprocess.DEVNULL, stdout=out,
                stderr=err, start_new_session=True, **popen)
        self.pid = self.parent.pid

    def checkpoint(self, fate="--kill"):
        """Dumps the tree into a new folder of images, which it returns."""
        self.images += 1
        images = self.folder / f"images-{self.images}"
        images.mkdir()
        self._stasis("checkpoint", "--pid", self.pid, "--images-dir", images, fate,
                     *self.options)
        if fate == "--kill":
            self.parent.wait(10)
        return images

    def restore(self, images):
        """Restores the tree; from then on `stasis restore` is its parent and passes on its exit code."""
        pidfile = images / "pid"
        with open(images / "restore.log", "wb") as log:
            self.parent = subprocess.Popen(
                [STASIS, "restore", "--images-dir", images, "--pidfile", pidfile, *self.options],
                cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(lambda: self._restored(pidfile, images), what="the restore")
        restored = int(pidfile.read_text(encoding="utf-8"))
        assert restored == self.pid, f"restored as pid {restored}, was {self.pid}"

    def pass_through(self, fates):
        """One checkpoint after the other; after each that ends the tree, a restore."""
        for fate in fates:
            images = self.checkpoint(fate)
            if fate == "--kill":
                self.restore(images)
                (self.folder / "restored").touch()

    def _restored(self, pidfile, images):
        if pidfile.exists() and pidfile.read_text(encoding="utf-8").strip():
            return True
        assert self.parent.poll() is None, "restore: " + self._text(images / "restore.log")
        return False

    def _stasis(self, *words):
        done = subprocess.run([STASIS, *map(str, words)], stdin=subprocess.DEVNULL, text=True,
                              capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, f"stasis {words[0]}: {done.stderr or done.stdout}"

    @staticmethod
    def _text(path):
        return path.read_text(encoding="utf-8", errors="replace")

    @property
    def out(self):
        return self._text(self.folder / "out")

    @property
    def err(self):
        return self._text(self.folder / "err")

    def wait(self, seconds=60):
        """The exit code of the program; what it printed is in the message when it is not 0."""
        return self.parent.wait(seconds)

    def end(self):
        """Kills what is left of it."""
        if self.parent.poll() is None:
            for pid in descendants(self.parent.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.parent.wait(10)
