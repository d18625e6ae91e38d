"""What the kernel's ways of reading, filling and watching memory cost on this machine."""

import subprocess

from bench.harness import Row
from e2e.paths import TARGETS


def primitives(run):
    """the kernel's own ways of reading, filling and watching memory, and of writing files"""
    mib = run.size(1024, 16)
    found = {}
    for _ in range(run.repetitions):
        done = subprocess.run([TARGETS / "bench_primitives", str(mib), run.folder], check=True, timeout=300,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            name, value, unit = line.split("\t")
            found.setdefault((name, unit), []).append(float(value))
    for (name, unit), values in found.items():
        run.add(Row("primitives", f"{name} ({mib} MiB)", {"kernel": values}, unit=unit, digits=2))
