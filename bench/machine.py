"""What machine the figures are of."""

import os
import platform
import subprocess
from pathlib import Path


def field_of(path, key):
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return "unknown"


def facts(folder):
    disk = subprocess.run(["findmnt", "-no", "SOURCE,FSTYPE,OPTIONS", "-T", folder], capture_output=True,
                          text=True, check=False).stdout.strip()
    return {
        "kernel": platform.release(),
        "CPU": field_of("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory": field_of("/proc/meminfo", "MemTotal"),
        "disk": " ".join(disk.split()) or "unknown",
        "load at the start": Path("/proc/loadavg").read_text(encoding="utf-8").split()[0],
    }


def markdown(found):
    return [f"* {name}: {value}" for name, value in found.items()]
