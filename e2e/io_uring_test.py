"""Rings of io_uring that are not at rest when a checkpoint begins."""

import pytest

from e2e.refusals_test import HEAD, RING
from e2e.wait import until

# A request ends after a while, again and again, with a pause in between.
BUSY = RING + """
made = ring()
ring_fd, parameters = made
places = mmap.mmap(ring_fd, 4096)
entries = mmap.mmap(ring_fd, 512, offset=0x10000000)
left = struct.pack('<qq', 0, 30_000_000)
address = ctypes.cast(left, ctypes.c_void_p).value
def word(at): return struct.unpack_from('<I', places, at)[0]
count = 0
while not os.path.exists('go'):
  at = count & 7
  struct.pack_into('<BBHiQQIIQ', entries, at * 64, 11, 0, 0, -1, 0, address, 1, 0, count)
  struct.pack_into('<I', places, parameters[16] + 4 * at, at)
  struct.pack_into('<I', places, parameters[11], count + 1)
  if c.syscall(426, ring_fd, 1, 0, 0, None, 0) != 1: os._exit(2)
  count += 1
  if count == 3: open('ready', 'w').close()
  while word(parameters[21]) != count: time.sleep(0.001)
  struct.pack_into('<I', places, parameters[20], count)
  time.sleep(0.03)
os._exit(0 if word(parameters[10]) == count else 3)
"""


@pytest.mark.parametrize("_", range(3))
def test_what_is_under_way_is_waited_for(start, folder, _):
    program = start("/usr/bin/python3", "-c", HEAD + BUSY)
    until(lambda: (folder / "ready").exists() or program.out, what="ready")
    if program.out:
        pytest.skip("this machine does not allow it")
    program.pass_through(["--kill"])
    (folder / "go").touch()
    assert program.wait() == 0, program.err
