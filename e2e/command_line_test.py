"""`stasis` on the host: what it does when it is told to end, when it is given what cannot be, and when
there is no room. The program goes on each time, and nothing half-made is left."""

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from e2e import journey
from e2e.paths import ROOT, STASIS, STASISD
from e2e.wait import until

pytestmark = pytest.mark.skipif(not STASIS.exists(), reason="stasis is not built")

# Memory that takes a moment to save, and a counter that shows that the program runs.
COUNTING = """
import os, time
memory = bytearray(%d << 20)
for page in range(0, len(memory), 4096): memory[page] = 1 + page %% 255
count = 0
while not os.path.exists("end"):
    count += 1
    with open("count.new", "w") as file: file.write(str(count))
    os.rename("count.new", "count")
    time.sleep(0.01)
"""


def number(folder):
    path = folder / "count"
    return int(path.read_text()) if path.exists() else 0


def goes_on(program):
    """Nobody traces it, and it counts."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    assert "TracerPid:\t0\n" in status
    before = number(program.folder)
    until(lambda: number(program.folder) > before + 2, what="the program to go on")


@pytest.fixture
def counting(start, folder):
    def start_counting(mebibytes=16):
        program = start("/usr/bin/python3", "-c", COUNTING % mebibytes)
        until(lambda: number(folder) > 0)
        return program

    return start_counting


def target(place, kind):
    return ["--output", place / "a.tar"] if kind == "archive" else ["--images-dir", place]


def refused(*words):
    """What it says, on one line."""
    done = subprocess.run([STASIS, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=120, check=False)
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("stasis: "), done.stderr
    return lines[0]


def stopped_amid(program, *words):
    """A checkpoint that was stopped, for now, while the program stands still and its memory is copied."""
    stasis = subprocess.Popen([STASIS, "checkpoint", "--pid", str(program.pid), "--no-pre-copy",
                               *map(str, words)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{program.pid}/status")
    until(lambda: f"TracerPid:\t{stasis.pid}\n" in status.read_text(), every=0)
    time.sleep(0.02)
    stasis.send_signal(signal.SIGSTOP)
    assert stasis.poll() is None and f"TracerPid:\t{stasis.pid}\n" in status.read_text()
    return stasis


KINDS = pytest.mark.parametrize("kind", ["archive", "images"])


@KINDS
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_checkpoint_that_is_ended_leaves_all_as_it_was(counting, place, kind, how):
    program = counting(512)
    stasis = stopped_amid(program, *target(place, kind), "--kill")
    stasis.send_signal(how)
    stasis.send_signal(signal.SIGCONT)
    _, said = stasis.communicate(timeout=30)
    assert stasis.returncode == (-how if how == signal.SIGKILL else 128 + how)
    assert how == signal.SIGKILL or said == "stasis: the checkpoint was cancelled\n"
    assert not list(place.iterdir())
    goes_on(program)


@KINDS
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_a_checkpoint_that_is_ended_while_the_program_runs_leaves_all_as_it_was(counting, place, kind, how):
    program = counting(512)
    stasis = subprocess.Popen([STASIS, "checkpoint", "--pid", str(program.pid), *map(str, target(place, kind))],
                              stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    smaps = Path(f"/proc/{program.pid}/smaps")
    until(lambda: " uw " in smaps.read_text(), every=0)  # its writes are watched
    stasis.send_signal(how)
    stasis.communicate(timeout=30)
    assert stasis.returncode == (-how if how == signal.SIGKILL else 128 + how)
    assert " uw " not in smaps.read_text()
    assert not list(place.iterdir())
    goes_on(program)


@KINDS
def test_a_checkpoint_that_takes_too_long_is_given_up(counting, place, kind):
    program = counting(512)
    stasis = stopped_amid(program, *target(place, kind), "--timeout", "1")
    time.sleep(1)
    stasis.send_signal(signal.SIGCONT)
    _, said = stasis.communicate(timeout=30)
    assert stasis.returncode == 1 and "in the time given to it" in said
    assert not list(place.iterdir())
    goes_on(program)


@KINDS
def test_a_full_disk_is_said_and_nothing_is_left(counting, mounted, kind):
    place = mounted("size=8m")
    program = counting(64)
    said = refused("checkpoint", "--pid", program.pid, *target(place, kind), "--kill")
    assert "No space left on device" in said and "another folder" in said
    assert not list(place.iterdir())
    goes_on(program)


@KINDS
def test_a_read_only_place_is_said(counting, mounted, kind):
    place = mounted("ro")
    program = counting()
    assert "Read-only file system" in refused("checkpoint", "--pid", program.pid, *target(place, kind))
    goes_on(program)


def test_what_is_there_is_not_overwritten(counting, place):
    program = counting()
    archive = place / "a.tar"
    archive.write_text("mine")
    assert "is not overwritten" in refused("checkpoint", "--pid", program.pid, "--output", archive)
    (place / "core-1.img").write_text("mine")
    assert "must not mix" in refused("checkpoint", "--pid", program.pid, "--images-dir", place)
    assert archive.read_text() == "mine" and len(list(place.iterdir())) == 2
    goes_on(program)


@KINDS
@pytest.mark.parametrize("pid", ["0x3fffff", "2"], ids=["nobody", "of the kernel"])
def test_a_pid_that_cannot_be(place, kind, pid):
    refused("checkpoint", "--pid", int(pid, 0), *target(place, kind))
    assert not list(place.iterdir())


@KINDS
def test_what_is_said_of_missing_folders(counting, place, kind):
    program = counting()
    said = refused("checkpoint", "--pid", program.pid, *target(place / "missing", kind))
    assert "missing" in said and "No such file or directory" in said
    goes_on(program)


@pytest.fixture
def checkpointed(counting, place, request):
    """A program that was ended, and its archive."""
    program = counting(getattr(request, "param", 16))
    archive = place / "a.tar"
    journey.stasis("checkpoint", "--pid", program.pid, "--output", archive, "--kill")
    program.parent.wait(10)
    return program, archive


def test_a_taken_pid_is_named_and_its_owner_left_alone(counting, place):
    program = counting()
    journey.stasis("checkpoint", "--pid", program.pid, "--images-dir", place, "--leave-running")
    said = refused("restore", "--images-dir", place, "--detach")
    assert f"pid {program.pid} is taken" in said
    goes_on(program)


@contextlib.contextmanager
def occupied(pid):
    """Somebody has that pid: clone3(2) with set_tid."""
    wanted = ctypes.c_int(pid)
    arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1)
    made = ctypes.CDLL(None, use_errno=True).syscall(435, arguments, ctypes.sizeof(arguments))
    if made == 0:
        os.execv("/bin/sleep", ["sleep", "1000"])
    assert made == pid, os.strerror(ctypes.get_errno())
    yield
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it was left alone"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_pid_of_a_child_that_is_taken_ends_the_restore(start, folder, place):
    program = start("sh", "-c", "sleep 1000 & echo $! >child; wait")
    child = until(lambda: (folder / "child").exists() and (folder / "child").read_text().strip())
    journey.stasis("checkpoint", "--pid", program.pid, "--images-dir", place, "--kill")
    program.parent.wait(10)
    until(lambda: not Path(f"/proc/{child}").exists(), what="the child's end")
    with occupied(int(child)):
        assert f"pid {child}" in refused("restore", "--images-dir", place, "--detach")
    assert not Path(f"/proc/{program.pid}").exists()


def test_a_pidfile_that_cannot_be_is_found_out_before_anything_runs(checkpointed, folder):
    program, archive = checkpointed
    before = number(folder)
    said = refused("restore", "--archive", archive, "--detach", "--pidfile", "/no/such/folder/pid")
    assert "/no/such/folder/pid" in said
    time.sleep(0.1)
    assert number(folder) == before and not Path(f"/proc/{program.pid}").exists()


def test_a_restore_passes_signals_and_exit_codes_on(checkpointed, folder):
    _, archive = checkpointed
    before = number(folder)
    for how, code in [(lambda stasis: stasis.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
                      (lambda _: (folder / "end").touch(), 0)]:
        stasis = subprocess.Popen([STASIS, "restore", "--archive", archive], stdin=subprocess.DEVNULL)
        until(lambda: number(folder) > before, what="the restored program")
        how(stasis)
        assert stasis.wait(30) == code
        before = number(folder)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
@pytest.mark.parametrize("checkpointed", [512], indirect=True, ids=["512 MiB"])
def test_a_restore_that_is_ended_leaves_no_process(checkpointed, folder, how):
    program, archive = checkpointed
    before = number(folder)
    process = Path(f"/proc/{program.pid}")
    stasis = subprocess.Popen([STASIS, "restore", "--archive", archive, "--detach"],
                              stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until(process.exists, every=0)
    stasis.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    stasis.send_signal(how)
    stasis.send_signal(signal.SIGCONT)
    _, said = stasis.communicate(timeout=30)
    assert stasis.returncode == (-how if how == signal.SIGKILL else 128 + how)
    assert how == signal.SIGKILL or said == "stasis: the restore was cancelled\n"
    until(lambda: not process.exists(), what="the end of what was half restored")
    assert number(folder) == before


@pytest.mark.parametrize("part", [0, 0.02, 0.5, 0.999], ids=lambda part: f"{part:.1%}")
def test_an_archive_that_is_cut_short_is_refused_by_all(checkpointed, place, part):
    program, archive = checkpointed
    os.truncate(archive, int(archive.stat().st_size * part))
    for words in [["inspect", archive], ["verify", archive], ["restore", "--archive", archive, "--detach"],
                  ["image", archive, "--output", place / "image.tar"]]:
        assert str(archive) in refused(*words)
    assert [path.name for path in place.iterdir()] == ["a.tar"]
    assert not Path(f"/proc/{program.pid}").exists()


def test_an_altered_archive_is_named_by_verify(checkpointed):
    _, archive = checkpointed
    with tarfile.open(archive) as tar:
        at = tar.getmember("spec.dump").offset_data
    with open(archive, "r+b") as file:
        file.seek(at)
        file.write(b"X")
    done = subprocess.run([STASIS, "verify", "--json", archive], capture_output=True, check=False)
    verdict = json.loads(done.stdout)
    assert done.returncode == 1 and not verdict["ok"]
    assert "spec.dump" in verdict["problems"][0]


def test_json_survives_names_that_are_no_utf8(checkpointed):
    _, archive = checkpointed
    odd = os.fsencode(archive.parent) + b"/\xff\x1b[31m.tar"
    os.rename(archive, odd)
    for words in [["verify", "--json", odd], ["inspect", "--json", odd]]:
        done = subprocess.run([STASIS, *words], capture_output=True, check=False)
        assert done.returncode == 0 and json.loads(done.stdout)
    done = subprocess.run([STASIS, "verify", odd], capture_output=True, check=False)
    assert done.returncode == 0 and b"\x1b" not in done.stdout


@pytest.mark.parametrize("words", [
    ["checkpoint"],
    ["checkpoint", "--pid", "1", "--container", "a", "--output", "a.tar"],
    ["checkpoint", "--pid", "0", "--output", "a.tar"],
    ["checkpoint", "--pid", "1"],
    ["checkpoint", "--pid", "1", "--output", "a.tar", "--kill", "--leave-stopped"],
    ["checkpoint", "--container", "", "--output", "a.tar"],
    ["restore"],
    ["nonsense"],
], ids=" ".join)
def test_wrong_usage_has_an_exit_code_of_its_own(words):
    assert subprocess.run([STASIS, *words], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize("words, page", [
    *[([STASIS, command], "stasis.1") for command in
      ["checkpoint", "restore", "inspect", "verify", "image", "check"]], ([STASISD], "stasisd.8"),
], ids=lambda value: value[-1] if isinstance(value, list) else "")
def test_the_manual_has_every_option(words, page):
    shown = subprocess.run([*words, "--help"], capture_output=True, text=True, check=True).stdout
    manual = (ROOT / "docs" / "man" / page).read_text().replace("\\-", "-")
    for option in set(re.findall(r"--[a-z][a-z-]+", shown)) - {"--container-runtime-endpoint"}:
        assert option in manual or option == "--help"
