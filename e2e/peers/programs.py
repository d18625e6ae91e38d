"""Programs that CRIU dumps or restores, and Stasis does the other half."""

import os
import time
from subprocess import TimeoutExpired

from e2e.host import Program
from e2e.peers.tools import await_reaped, criu

# What CRIU does not take unasked: connections are closed, as Stasis has it.
DUMP = ["--tcp-close", "--file-locks"]
RESTORE = ["--tcp-close", "--file-locks", "--restore-detached", "--restore-sibling"]


class Restored:
    """A child that we did not start: CRIU made it our child (--restore-sibling). As a Popen."""

    def __init__(self, pid):
        self.pid = pid
        self.returncode = None

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, seconds):
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutExpired(f"pid {self.pid}", seconds)
            time.sleep(0.005)
        return self.returncode


class RestoredByCriu(Program):
    def restore(self, images):
        await_reaped(images)
        pidfile = images / "pid"
        criu("restore", images, *RESTORE, "--pidfile", pidfile)
        self.parent = Restored(int(pidfile.read_text(encoding="utf-8")))
        assert self.parent.pid == self.pid


class DumpedByCriu(Program):
    def checkpoint(self, fate="--kill"):
        assert fate == "--kill"
        self.images += 1
        images = self.folder / f"images-{self.images}"
        images.mkdir()
        criu("dump", images, "--tree", self.pid, *DUMP)
        self.parent.wait(10)
        await_reaped(images)
        return images
