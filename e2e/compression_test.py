"""Archives in zstd frames (`stasis checkpoint --compress`): restored without being unpacked, and read by others."""

import json
import subprocess

import pytest

from e2e.paths import STASIS
from e2e.wait import until

# 16 MiB of its own, saved while it runs, and 48 MiB of shared memory, more than is held in memory while it
# stands still. Each page has its own number, over and over.
HOLD = """
import mmap, os, time
PAGE, OWN, SHARED = 4096, 4096, 12288
own = mmap.mmap(-1, PAGE * OWN, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared = mmap.mmap(-1, PAGE * SHARED)
def page(i): return i.to_bytes(8, "little") * 512
for i in range(OWN): own.write(page(i))
for i in range(SHARED): shared.write(page(OWN + i))
open("ready", "w").close()
while not os.path.exists("restored"): time.sleep(0.001)
for i in range(OWN): assert own[i * PAGE:(i + 1) * PAGE] == page(i), f"page {i} is another one"
for i in range(SHARED): assert shared[i * PAGE:(i + 1) * PAGE] == page(OWN + i), f"shared page {i} is another one"
"""


def stasis(*words):
    return subprocess.run([STASIS, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=120, check=False)


@pytest.fixture
def holding(start, folder):
    program = start("/usr/bin/python3", "-c", HOLD)
    until(lambda: (folder / "ready").exists() or program.parent.poll() is not None, what="ready")
    return program


@pytest.mark.parametrize("fate", ["--leave-running", "--kill"])
def test_the_report_tells_what_it_came_to_and_tools_read_it(holding, folder, fate):
    archive = folder / "a.tar.zst"
    done = stasis("checkpoint", "--pid", holding.pid, "--output", archive, "--compress", "zstd:1", "--json", fate)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["compression"]
    assert report["stored_bytes"] == archive.stat().st_size
    assert report["plain_bytes"] > 64 << 20
    assert report["ratio"] == pytest.approx(report["plain_bytes"] / report["stored_bytes"])
    assert report["ratio"] > 5
    assert report["cpu_seconds_per_gb"] > 0
    subprocess.run(["zstd", "-qt", archive], check=True)
    listed = subprocess.run(["tar", "-tf", archive], check=True, capture_output=True, text=True).stdout
    assert "checkpoint/inventory.img" in listed.split()
    verified = stasis("verify", archive)
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.parametrize("how", [[], ["--lazy-pages"]], ids=["at-once", "lazily"])
def test_it_is_restored_in_place(holding, folder, how):
    archive = folder / "program.tar"
    done = stasis("checkpoint", "--pid", holding.pid, "--output", archive, "--compress", "zstd", "--kill")
    assert done.returncode == 0 and " to 1)" in done.stdout, done.stderr
    holding.parent.wait(10)
    (folder / "restored").touch()
    restored = stasis("restore", "--archive", archive, *how)
    assert restored.returncode == 0, restored.stderr + holding.err


def test_one_that_was_altered_is_not_restored(holding, folder):
    archive = folder / "program.tar"
    assert stasis("checkpoint", "--pid", holding.pid, "--output", archive, "--compress", "zstd").returncode == 0
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    altered = folder / "altered.tar"
    altered.write_bytes(content)
    done = stasis("restore", "--archive", altered)
    assert done.returncode == 1 and "copy" in done.stderr, done.stderr


def test_what_is_no_compression_is_refused_before_anything_is_done(folder):
    for words in (["--output", folder / "a.tar", "--compress", "lz4"],
                  ["--output", folder / "a.tar", "--compress", "zstd:99"],
                  ["--images-dir", folder, "--compress", "zstd"]):
        done = stasis("checkpoint", "--pid", 1, *words)
        assert done.returncode == 2 and "--compress" in done.stderr, done.stderr
    assert not (folder / "a.tar").exists()
