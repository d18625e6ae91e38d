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

# A ring of io_uring, and one request for it.
RING = """
import struct
def ring(flags=0):
  parameters = (ctypes.c_uint32 * 30)()
  parameters[2] = flags
  fd = c.syscall(425, 8, parameters)
  if fd < 0:
    print('skip', flush=True); os._exit(0)
  return fd, parameters
def register(fd, operation, argument, count):
  if c.syscall(427, fd, operation, argument, count) < 0:
    raise OSError(ctypes.get_errno(), 'io_uring_register')
def submit(made, operation, fd, address=0, length=0, detail=0):
  ring, parameters = made
  places = mmap.mmap(ring, 4096)
  entries = mmap.mmap(ring, 512, offset=0x10000000)
  struct.pack_into('<BBHiQQIIQ', entries, 0, operation, 0, 0, fd, 0, address, length, detail, 1)
  struct.pack_into('<I', places, parameters[11], 1)
  if c.syscall(426, ring, 1, 0, 0, None, 0) != 1:
    raise OSError(ctypes.get_errno(), 'io_uring_enter')
  return places, entries
"""

KINDS = {
    "ring_that_waits": (RING + """
time_left = struct.pack('<qq', 1000, 0)
kept = submit(ring(), 11, -1, ctypes.cast(time_left, ctypes.c_void_p).value, 1)
done()""", "requests are under way: 1; a ring that waits"),
    "ring_that_polls": (RING + "kept = submit(ring(), 6, os.pipe()[0], detail=1)\ndone()",
                        "a ring that waits for something"),
    "ring_with_a_thread": (RING + "made = ring(2)\ndone()", "IORING_SETUP_SQPOLL"),
    "ring_with_provided_buffers": (RING + """
room = ctypes.create_string_buffer(4096)
kept = submit(ring(), 31, 1, ctypes.addressof(room), 4096)
done()""", "provided buffers"),
    "ring_with_credentials": (RING + "register(ring()[0], 9, None, 0)\ndone()",
                              "registered credentials"),
    "ring_with_restrictions": (RING + """
register(ring(64)[0], 11, struct.pack('<HBBIII', 1, 1, 0, 0, 0, 0), 1)
done()""", "restrictions"),
    "ring_with_a_closed_file": (RING + """
file = os.open('file', os.O_CREAT | os.O_RDWR)
register(ring()[0], 2, struct.pack('<i', file), 1)
os.close(file)
done()""", "registered file 0 is open nowhere else"),
    "ring_with_a_closed_eventfd": (RING + """
told = os.eventfd(0)
register(ring()[0], 4, struct.pack('<i', told), 1)
os.close(told)
done()""", "its eventfd is open nowhere else"),
    "ring_with_lost_memory": (RING + """
c.mmap.restype = ctypes.c_void_p
at = c.mmap(None, ctypes.c_size_t(8192), 3, 0x22, -1, ctypes.c_long(0))
register(ring()[0], 0, struct.pack('<QQ', at, 8192), 1)
c.munmap(ctypes.c_void_p(at + 4096), ctypes.c_size_t(4096))
done()""", "a registered buffer that is not the process's memory any more"),
    "ring_that_is_closed": (RING + """
made = ring()
kept = mmap.mmap(made[0], 4096)
os.close(made[0])
for fd in os.listdir('/proc/self/fd'):
  if 'io_uring' in os.path.realpath('/proc/self/fd/' + fd): os.close(int(fd))
done()""", "an io_uring that is mapped and not open"),
    "first_thread": ("threading.Thread(target=done).start(); c.syscall(60, 0)",
                     "its first thread has ended (pthread_exit) while others run"),
    "fanotify_permission": ("""
group = c.fanotify_init(4, 0)
open('marked', 'w').close()
if c.fanotify_mark(group, 1, ctypes.c_uint64(0x10000), -100, b'marked') < 0:
  print('skip', flush=True); os._exit(0)
done()""", "decides what others may open"),
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
