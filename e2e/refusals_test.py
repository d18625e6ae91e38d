"""Kinds of state that stay out: refused by pid and reason, also by `stasis check`, and the program runs on."""

import os
import subprocess

import pytest

from e2e.paths import STASIS
from e2e.wait import until

HEAD = """
import ctypes, mmap, os, threading, time
c = ctypes.CDLL(None, use_errno=True)
def done():
    open('ready', 'w').close()
    while True: time.sleep(0.01)
"""
UNSHARE = """
if c.unshare({flag}) != 0:
    print('skip', flush=True); os._exit(0)
"""

KINDS = {
    "first_thread": ("threading.Thread(target=done).start(); c.syscall(60, 0)",
                     "its first thread has ended (pthread_exit) while others run"),
    "fanotify_permission": ("""
group = c.fanotify_init(4, 0)
open('marked', 'w').close()
if c.fanotify_mark(group, 1, ctypes.c_uint64(0x10000), -100, b'marked') < 0:
  print('skip', flush=True); os._exit(0)
done()""", "decides what others may open"),
    "part_of_a_segment": ("""
c.shmat.restype = ctypes.c_void_p
at = c.shmat(c.shmget(0, 16384, 0o600), None, 0)
c.munmap(ctypes.c_void_p(at), 4096)
done()""", "a part of a System V segment"),
    "user_namespace": ("if os.fork() == 0:" + UNSHARE.format(flag=0x10000000).replace("\n", "\n  ") +
                       "\n  done()\nos.wait()", "is in another user namespace"),
    "pid_namespace": (UNSHARE.format(flag=0x20000000) + "\nif os.fork() == 0: done()\nos.wait()",
                      "its children in another namespace"),
    "mount_namespace": ("if os.fork() == 0:" + UNSHARE.format(flag=0x20000).replace("\n", "\n  ") +
                        "\n  done()\nos.wait()", "is in another mnt namespace"),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_refused_before_anything_changes(start, folder, kind):
    script, reason = KINDS[kind]
    program = start("/usr/bin/python3", "-c", HEAD + script)
    until(lambda: (folder / "ready").exists() or program.out, what="ready")
    if program.out:
        pytest.skip("this machine does not allow it")
    images = folder / "images"
    images.mkdir()
    for words in (["check", "--pid", program.pid],
                  ["checkpoint", "--pid", program.pid, "--images-dir", images, "--kill"]):
        done = subprocess.run([STASIS, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=60, check=False)
        assert done.returncode == 1 and reason in done.stdout + done.stderr, done
        assert "pid " in done.stderr + done.stdout
    assert os.listdir(images) == []
    assert program.parent.poll() is None
