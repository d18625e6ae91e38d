"""A tree that has nearly as many files as its limit allows is dumped and comes back below the same limit."""

import subprocess

import pytest

from e2e.paths import STASIS
from e2e.wait import until

LIMIT = 2000  # of which a restore needs 256 for itself

SCRIPT = """
import os, resource, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
pairs = [socket.socketpair() for _ in range(600)]
for one, other in pairs: one.send(b'x')
files = [os.memfd_create(str(i)) for i in range(400)]
for i, fd in enumerate(files): os.pwrite(fd, str(i).encode(), 0)
terminals = [os.openpty()[0] for _ in range(4)]
open('ready', 'w').close()
while not os.path.exists('go'): time.sleep(0.01)
assert all(other.recv(9) == b'x' for one, other in pairs)
assert all(os.pread(fd, 9, 0) == str(i).encode() for i, fd in enumerate(files))
print('ok', flush=True)
"""


def test_a_restore_holds_no_file_twice(start, folder):
    program = start("/usr/bin/python3", "-c", SCRIPT.format(limit=LIMIT))
    until((folder / "ready").exists, what="the files")
    images = program.checkpoint()
    done = subprocess.run(["prlimit", f"--nofile={LIMIT}:{LIMIT}", STASIS, "restore", "--images-dir", images,
                           "--detach"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 0, done.stderr
    (folder / "go").touch()
    until(lambda: "ok" in program.out or program.err, what="the program's word")
    assert program.err == ""


MEMFDS = """
import os, resource, time
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
files = [os.memfd_create(str(i)) for i in range({limit} - 300)]
for i, fd in enumerate(files): os.pwrite(fd, str(i).encode(), 4096 * (i % 3))
for i, fd in enumerate(files): os.lseek(fd, i, 0)
open('ready', 'w').close()
while not os.path.exists('go'): time.sleep(0.01)
assert all(os.pread(fd, 9, 4096 * (i % 3)) == str(i).encode() for i, fd in enumerate(files))
assert all(os.lseek(fd, 0, 1) == i for i, fd in enumerate(files))
print('ok', flush=True)
"""


@pytest.mark.parametrize("fate", ["--kill", "--leave-running"])
def test_a_dump_holds_no_memory_file_twice(start, folder, fate):
    program = start("/usr/bin/python3", "-c", MEMFDS.format(limit=LIMIT))
    until((folder / "ready").exists, what="the files")
    images = folder / "images-1"
    images.mkdir()
    done = subprocess.run(["prlimit", f"--nofile={LIMIT}:{LIMIT}", STASIS, "checkpoint", "--pid", str(program.pid),
                           "--images-dir", images, fate], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    if fate == "--kill":
        program.parent.wait(10)
        program.restore(images)
    (folder / "go").touch()
    until(lambda: "ok" in program.out or program.err, what="the program's word")
    assert program.err == ""
