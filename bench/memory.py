"""Freeze and total times of a checkpoint and its restore, by size of memory: ./dev bench [MIB...]"""

import sys
import tempfile
import time
from pathlib import Path

from e2e import stats
from e2e.host import Program
from e2e.wait import until

HOLD = """
import mmap, os, sys, time
area = mmap.mmap(-1, int(sys.argv[1]) << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
block = os.urandom(1 << 20)
while area.tell() < len(area):
    area.write(block)
open("ready", "w").close()
time.sleep(1e6)
"""


def measure(mebibytes):
    with tempfile.TemporaryDirectory(prefix="stasis-bench-") as name:
        folder = Path(name)
        program = Program(folder, ["/usr/bin/python3", "-c", HOLD, mebibytes])
        try:
            until((folder / "ready").exists, seconds=120)
            start = time.monotonic()
            images = program.checkpoint()
            dumped = time.monotonic()
            program.restore(images)
            restored = time.monotonic()
        finally:
            program.end()
        dump = stats.read((images / "stats-dump").read_bytes())
        size = sum(path.stat().st_size for path in images.iterdir())
    return dump["frozen_us"] / 1000, (dumped - start) * 1000, (restored - dumped) * 1000, size / 2**20


def main(sizes):
    print(f"{'memory':>10} {'frozen':>10} {'dump':>10} {'restore':>10} {'images':>10}")
    for size in sizes:
        frozen, dump, restore, images = measure(size)
        print(f"{size:>6} MiB {frozen:>7.1f} ms {dump:>7.0f} ms {restore:>7.0f} ms {images:>6.0f} MiB")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [16, 128, 1024])
