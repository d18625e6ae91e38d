"""Restored programs whose memory comes while they run (`stasis restore --lazy-pages`)."""

import os
import re
import signal
import subprocess

import pytest

from e2e import journey
from e2e.host import page_servers
from e2e.paths import STASIS
from e2e.redis import Redis
from e2e.testbed.cri import CriError
from e2e.wait import until

# 64 MiB, each page its own number over and over. What follows runs once the program may go on.
HOLD = """
import ctypes, mmap, os, sys, time
PAGE, COUNT = 4096, 16384
memory = mmap.mmap(-1, PAGE * COUNT, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def page(i): return i.to_bytes(8, "little") * 512
def verify(numbers, start=0):
    for i in numbers:
        assert memory[(start + i) * PAGE:(start + i + 1) * PAGE] == page(i), f"page {i} is another one"
for i in range(COUNT): memory.write(page(i))
open("ready", "w").close()
while not os.path.exists("restored"): time.sleep(0.001)
"""

VERIFY = "verify(range(COUNT)); verify(range(COUNT))"

FORK = """
children = []
for start in range(0, COUNT, COUNT // 4):  # one after the other, while the pages come
    child = os.fork()
    if child == 0:
        verify(reversed(range(start, COUNT)))
        memory[:PAGE] = b"c" * PAGE  # its own, now
        verify(range(1, COUNT))
        os._exit(0)
    children.append(child)
    verify(range(start, start + COUNT // 4))
assert all(os.waitpid(child, 0)[1] == 0 for child in children), "a child has other memory"
verify(range(COUNT))
"""

DONTNEED = """
half = PAGE * COUNT // 2
memory.madvise(mmap.MADV_DONTNEED, half, half)
assert memory[half:] == bytes(half), "old content is back"
verify(range(COUNT // 2))
while not os.path.exists("loaded"): time.sleep(0.001)
assert memory[half:] == bytes(half), "old content came later"
"""

UNMAP_AND_MOVE = """
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] * 2 + [ctypes.c_int, ctypes.c_void_p]
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
quarter = PAGE * COUNT // 4
# The last quarter to a fresh place, another mapping where it was, and the third one over the first.
fresh = libc.mremap(base + 3 * quarter, quarter, 2 * quarter, 1, None)
assert libc.mmap(base + 3 * quarter, quarter, 3, 0x32, -1, 0) == base + 3 * quarter  # MAP_FIXED
assert libc.mremap(base + 2 * quarter, quarter, quarter, 3, base) == base
def at(address, i): return ctypes.string_at(address + i * PAGE, PAGE)
def check():
    n = COUNT // 4
    assert all(at(fresh, i) == page(3 * n + i) for i in range(n)), "what was moved is another"
    assert ctypes.string_at(fresh + quarter, quarter) == bytes(quarter), "what it grew by is not empty"
    assert all(at(base, i) == page(2 * n + i) for i in range(n)), "what was moved over others is another"
    assert all(at(base, n + i) == page(n + i) for i in range(n)), "what was not moved is another"
    assert ctypes.string_at(base + 3 * quarter, quarter) == bytes(quarter), "the new mapping is not empty"
check()
while not os.path.exists("loaded"): time.sleep(0.001)
check()
"""

READ = """
import threading
# The kernel, too, waits for pages: write(2) out of memory that is not there yet; and several threads at once.
def copy(start):
    with open(f"copy{start}", "wb") as file:
        file.write(memoryview(memory)[start * PAGE:(start + COUNT // 4) * PAGE])
threads = [threading.Thread(target=copy, args=(start,)) for start in range(0, COUNT, COUNT // 4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
copies = b"".join(open(f"copy{start}", "rb").read() for start in range(0, COUNT, COUNT // 4))
assert all(copies[i * PAGE:(i + 1) * PAGE] == page(i) for i in range(COUNT)), "write(2) saw other memory"
"""


def start_lazily(start, folder, what, hold=HOLD):
    program = start("/usr/bin/python3", "-c", hold + what)
    until(lambda: (folder / "ready").exists() or program.parent.poll() is not None, what="ready")
    images = program.checkpoint()
    program.options = ["--lazy-pages"]
    program.restore(images)
    (folder / "restored").touch()
    return program


@pytest.mark.parametrize("what", [VERIFY, FORK, DONTNEED, UNMAP_AND_MOVE, READ],
                         ids=["verify", "fork", "dontneed", "unmap_and_move", "read"])
def test_memory_is_what_it_was(start, folder, what):
    program = start_lazily(start, folder, what)
    until(lambda: not page_servers(), what="the page server's end")
    (folder / "loaded").touch()
    assert program.wait() == 0, program.err


def test_pages_side_by_side_in_areas_of_their_own(start, folder):
    split = """
libc = ctypes.CDLL(None, use_errno=True)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for i in range(0, COUNT, 8): assert libc.mprotect(ctypes.c_void_p(base + i * PAGE), PAGE, 1) == 0
open("ready", "w").close()
"""
    program = start_lazily(start, folder, VERIFY, HOLD.replace('open("ready", "w").close()\n', split))
    assert program.wait() == 0, program.err


def test_a_program_that_ends_at_once_ends_its_page_server(start, folder):
    program = start_lazily(start, folder, "os._exit(7)")
    assert program.wait() == 7
    until(lambda: not page_servers(), what="the page server's end")


def test_a_loaded_program_is_checkpointed_as_any_other(start, folder):
    program = start_lazily(start, folder, "while not os.path.exists('go'): time.sleep(0.001)\n" + VERIFY)
    until(lambda: not page_servers(), what="the page server's end")
    program.options = []
    program.pass_through(["--kill"])
    (folder / "go").touch()
    assert program.wait() == 0, program.err


def test_out_of_an_archive(start, folder):
    program = start("/usr/bin/python3", "-c", HOLD + VERIFY)
    until(lambda: (folder / "ready").exists(), what="ready")
    archive = folder / "program.tar"
    subprocess.run([STASIS, "checkpoint", "--pid", str(program.pid), "--output", archive, "--kill"],
                   stdin=subprocess.DEVNULL, check=True, timeout=60)
    program.parent.wait(10)
    (folder / "restored").touch()
    done = subprocess.run([STASIS, "restore", "--archive", archive, "--lazy-pages"], timeout=60, check=False)
    assert done.returncode == 0, program.err


def values(count):
    return [f"{i}:" * 512 for i in range(count)]  # some KiB each


def test_a_container_whose_memory_comes_while_stasisd_is_away(bed, pods, folder):
    pod = pods("lazy-first")
    container = bed.cri.run(pod, "redis", bed.image("redis"))
    redis = until(lambda: Redis.connect(pod.ip), what="redis")
    redis.pipeline((["SET", i, value] for i, value in enumerate(values(16_000))), batch=100)
    redis.close()
    journey.checkpoint(bed.cri, container, folder / "redis.tar")
    image = journey.push_image(folder / "redis.tar", f"{bed.registry.address}/redis-lazy:1")
    bed.cri.remove_pod(pod.id)

    pod = pods("lazy-second")
    pod.config["annotations"] = {"stasis.dev/lazy-pages": "true"}
    restored = bed.cri.run(pod, "redis", image)
    bed.stop_service("stasisd", signal.SIGKILL)
    redis = until(lambda: Redis.connect(pod.ip), what="the restored redis")
    assert redis.pipeline(["GET", i] for i in range(16_000)) == values(16_000)
    until(lambda: not page_servers(), what="the page server's end")
    bed.start_shim()
    told = re.findall(r"lazy_bytes=\"?(\d+)", bed.service_log("stasisd", 200))
    assert told and int(told[-1]) > 32 << 20, "most of its memory was there at once"
    journey.checkpoint(bed.cri, restored, folder / "again.tar")
    journey.stasis("verify", folder / "again.tar")


def test_an_annotation_that_says_neither_is_refused(bed, pods, folder):
    pod = pods("lazy-neither")
    container = bed.cri.run(pod, "main", bed.image("busybox"), command=["sleep", "1000"])
    journey.checkpoint(bed.cri, container, folder / "sleep.tar")
    image = journey.push_image(folder / "sleep.tar", f"{bed.registry.address}/sleep-lazy:1")
    again = pods("lazy-neither-again")
    again.config["annotations"] = {"stasis.dev/lazy-pages": "yes"}
    with pytest.raises(CriError) as refused:
        bed.cri.run(again, "main", image)
    assert refused.value.code == "InvalidArgument"
    assert 'stasis.dev/lazy-pages is "yes"; it can be "false" or "true"' in str(refused.value)
