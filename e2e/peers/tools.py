"""The programs of the peers tree: CRIU, its image tool crit, and checkpointctl.

CRIU runs on the machine's own root, by the tree's dynamic linker: so it dumps and restores the machine's
programs, with the machine's libraries. The others only read, and have the tree as their root.
"""

import os
import subprocess
from pathlib import Path

from e2e.paths import PEERS
from e2e.wait import until

TREE = Path(__file__).with_name("tree.sh")
CRIU = [PEERS / "lib64/ld-linux-x86-64.so.2", "--library-path", PEERS / "usr/lib/x86_64-linux-gnu",
        PEERS / "usr/sbin/criu"]
CAP_SYS_RESOURCE = 24


class PeerError(AssertionError):
    """What a peer said when it did not succeed."""


def has_capability(number):
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return int(effective, 16) >> number & 1 == 1


def in_tree(folder, *command, deadline=300):
    """What a program of the tree prints, which sees `folder` at its own path."""
    done = subprocess.run([TREE, "enter", PEERS, folder, *map(str, command)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=deadline, check=False)
    if done.returncode != 0:
        raise PeerError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def criu(verb, images, *options):
    """CRIU on a folder of images, where its log stays."""
    log = images / f"{verb}.log"
    done = subprocess.run([*CRIU, verb, "-D", images, "-v4", "-o", log.name, *map(str, options)],
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, timeout=120, check=False)
    if done.returncode != 0:
        text = log.read_text(encoding="utf-8", errors="replace")
        errors = [line for line in text.splitlines() if "Error" in line]
        raise PeerError(f"criu {verb}: " + "\n".join(errors))


def await_reaped(images):
    """Waits until no task of the images is left: who was killed keeps its pid until it is waited for."""
    tids = [path.stem.removeprefix("core-") for path in images.glob("core-*.img")]
    until(lambda: not any(os.path.exists(f"/proc/{tid}") for tid in tids), what="the pids")
