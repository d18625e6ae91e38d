"""A process that is stopped at a system call for as long as a test needs: no test has to hit a moment by luck."""

import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from e2e.wait import until

STILL = 0.5  # seconds
# Of x86_64.
NUMBERS = {"write": 1, "ioctl": 16, "pwrite64": 18, "uname": 63, "fsync": 74, "ftruncate": 77, "listxattr": 194,
           "getdents64": 217, "renameat": 264, "linkat": 265, "process_vm_readv": 310, "process_vm_writev": 311,
           "pidfd_getfd": 438}


def tasks(pid, name):
    """A file of each of the process's threads, as "key: value" lines."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (task / name).read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        found[task.name] = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return found


class Hold:
    """`call`, by name, is not made by any thread of the process from its `nth` on, counted from now, until
    release(); those of its future children neither."""

    def __init__(self, pid, call, nth=1):
        self.pid, self.number = pid, NUMBERS[call]
        self.tracer = subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid), "-e", f"trace={call}",
                                        "-e", f"inject={call}:delay_enter=3600s:when={nth}+"])
        try:
            until(lambda: {task["TracerPid"] for task in tasks(pid, "status").values()} == {str(self.tracer.pid)},
                  what="strace to be there")
        except BaseException:  # nobody has this object, to release it
            self.release()
            raise

    def _stopped(self):
        """The threads that stand at the call, each with how often it has slept."""
        return {(tid, of["voluntary_ctxt_switches"]) for tid, of in tasks(self.pid, "status").items()
                if of["State"].startswith("t") and self._call_of(tid) == str(self.number)}

    def _call_of(self, tid):
        try:
            return Path(f"/proc/{self.pid}/task/{tid}/syscall").read_text().split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def _tracer_sleeps(self):
        return tasks(self.tracer.pid, "status")[str(self.tracer.pid)]["State"].startswith("S")

    def wait(self):
        """Until a thread is there. strace lets it go on at once from each stop but the one that is delayed."""
        def held():
            before = self._stopped()
            return before and stays(lambda: before & self._stopped()) and self._tracer_sleeps()
        until(held, 120, what="the process to be at the call", every=0.05)

    def release(self):
        # SIGTERM would wait for the delay; when a tracer dies, what it traces runs on (ptrace(2)).
        self.tracer.kill()
        self.tracer.wait()


def stays(condition):
    """Whether `condition` holds all the time, which is not long."""
    end = time.monotonic() + STILL
    while time.monotonic() < end:
        if not condition():
            return False
        time.sleep(0.05)
    return True


@contextmanager
def held(pid, call, nth=1):
    """The process at the call, which it makes when this ends."""
    hold = Hold(pid, call, nth)
    try:
        yield hold
    finally:
        hold.release()
