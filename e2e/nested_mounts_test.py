"""Processes in mount namespaces of their own, below a root with another one: made again with what each sees."""

import os
import subprocess

import pytest

from e2e.host import descendants
from e2e.own_root_test import dump, mounts_of, root, run
from e2e.paths import STASIS
from e2e.wait import until

__all__ = ["root"]

# The first process shares /run/shared with the second, which also has file systems that only it sees, an open file and
# a deleted one on these, and has mounted over what the first sees. The third has changed its root (pivot_root(2)).
SCRIPT = """
cd "$0"
mount --bind . . && cd "$0"
mkdir -p usr proc run data old dev
mknod -m 666 dev/null c 1 3
mount --bind /usr usr
touch name && mount --bind /etc/hostname name
mount -t proc proc proc
mount -t tmpfs own run
mkdir run/shared run/sub
mount --bind run/shared run/shared && mount --make-shared run/shared
mount --bind data data && mount --make-shared data
echo outside >run/sub/file
mkdir -m 710 gone place; touch empty file; chmod 640 empty
mount --bind gone place && rmdir gone
mount --bind empty file && rm empty
pivot_root . old
exec /usr/bin/sh -c 'umount -l /old; cd /; exec >/data/out 2>&1 </dev/null
  unshare --mount --propagation unchanged sh /data/second & unshare --mount --propagation slave sh /data/third &
  touch /data/first.ready; wait; exec sleep 600'
"""
SECOND = """
mount -t tmpfs inner /run/sub
echo inside >/run/sub/file
exec 3</run/sub/file 4<>/run/sub/gone 5</usr/bin/env
echo lost >&4; rm /run/sub/gone
mount -o remount,ro,bind /data
cd /run/sub
touch /run/second.ready
exec sleep 601
"""
THIRD = """
mkdir /run/top
mount -t tmpfs -o mode=711 top /run/top
mkdir /run/top/usr /run/top/old /run/top/proc /run/top/run /run/top/deep
ln -s usr/bin usr/lib usr/lib64 /run/top
mount --bind /usr /run/top/usr; mount --bind /proc /run/top/proc; mount --bind /run /run/top/run
cd /run/top; pivot_root . old; umount -l /old
echo third >/deep/file; cd /deep; exec 6</deep/file
touch /run/third.ready
exec sleep 602
"""


def sleeper(pid, seconds):
    """The process below `pid` that sleeps for so many."""
    def find():
        for process in descendants(pid):
            try:
                with open(f"/proc/{process}/cmdline", "rb") as command:
                    if command.read() == b"sleep\0%d\0" % seconds:
                        return process
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
        return None

    return until(find, what=f"sleep {seconds}")


def inside(pid, script):
    words = ["nsenter", "-t", str(pid), "--mount", "--pid", "--root", f"--wd=/proc/{pid}/cwd", "sh", "-c", script]
    return subprocess.run(words, text=True, capture_output=True, check=False, timeout=60).stdout


def content(pid, descriptor):
    with open(f"/proc/{pid}/fd/{descriptor}", encoding="utf-8") as file:
        return file.read()


def namespace(pid):
    return os.readlink(f"/proc/{pid}/ns/mnt")


def mount_of(pid, descriptor):
    """Where, in the namespace of `pid`, the mount of an open file is; none where that is in another namespace."""
    with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="utf-8") as file:
        number = dict(line.split(":", 1) for line in file)["mnt_id"].strip()
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8") as file:
        return next((line.split()[4] for line in file if line.split()[0] == number), None)


@pytest.fixture
def program(start, root):
    (root / "data").mkdir()
    (root / "data/second").write_text(SECOND, encoding="utf-8")
    (root / "data/third").write_text(THIRD, encoding="utf-8")
    started = start("unshare", "--mount", "--pid", "--fork", "--propagation", "private", "sh", "-ec", SCRIPT, root)
    until((root / "data/first.ready").exists, what="the first process")
    pid = descendants(started.pid)[1]
    for name in ("second", "third"):
        until(lambda name=name: os.path.exists(f"/proc/{pid}/root/run/{name}.ready"), what=f"the {name} process")
    return pid


def check_content(first, second, third):
    assert content(second, 3) == "inside\n" and content(second, 4) == "lost\n" and content(third, 6) == "third\n"
    assert os.readlink(f"/proc/{second}/fd/4").endswith("(deleted)")
    assert inside(first, "cat /run/sub/file") == "outside\n"
    for process in (first, second):
        assert inside(process, "stat -c '%a %F' /place /file") == "710 directory\n640 regular empty file\n"
    assert inside(first, "stat -c %i /place /file") == inside(second, "stat -c %i /place /file")
    assert inside(second, "cat file; pwd -P; touch /data/x 2>&- || echo read-only") == "inside\n/run/sub\nread-only\n"
    assert inside(third, "cat file; pwd -P; stat -c %a /; cat /run/sub/file") == "third\n/deep\n711\noutside\n"
    assert mount_of(second, 3) == "/run/sub" and mount_of(second, 5) == "/usr" and mount_of(third, 6) == "/"


def check_sharing(first, second, third):
    """What is mounted by one comes to its peers, and from these to their slaves."""
    for source, sees in ((first, True), (second, True), (third, False)):
        inside(source, "mkdir -p /run/shared/new; mount -t tmpfs more /run/shared/new")
        for other in {first, second} - {source}:
            assert inside(other, "grep -c ' /run/shared/new ' /proc/self/mountinfo").strip() == ("1" if sees else "0")
        inside(source, "umount /run/shared/new; rmdir /run/shared/new")


def test_processes_come_back_into_their_mount_namespaces(program, root, folder):
    first = program
    for time in range(2):
        second, third = sleeper(first, 601), sleeper(first, 602)
        before = [mounts_of(pid) for pid in (first, second, third)]
        check_content(first, second, third)
        images = dump(first, folder / f"images-{time}", "--external", "mnt[/usr]:programs", "--external", "mnt[/name]:name")
        run(STASIS, "restore", "--images-dir", images, "--detach", "--pidfile", folder / "pid", "--root", root,
            "--external", "mnt[programs]:/usr", "--external", "mnt[name]:/etc/hostname")
        first = int((folder / "pid").read_text(encoding="utf-8"))
        second, third = sleeper(first, 601), sleeper(first, 602)
        assert len({namespace(pid) for pid in (first, second, third, "self")}) == 4
        assert [mounts_of(pid) for pid in (first, second, third)] == before
        check_content(first, second, third)
        check_sharing(first, second, third)
    os.kill(first, 9)


def test_a_removed_file_that_is_mounted_and_has_a_content_is_refused(program, folder):
    inside(program, "echo more >/file")
    (folder / "images").mkdir()
    said = run(STASIS, "checkpoint", "--pid", program, "--images-dir", folder / "images", "--external",
               "mnt[/usr]:programs", code=1)
    assert "what is mounted at /file was removed" in said


def test_where_the_root_has_no_root_of_its_own_it_is_refused(start, folder):
    script = "unshare --mount sh -c 'touch $0/ready; exec sleep 601' $0 & wait"
    started = start("sh", "-c", script, folder)
    until((folder / "ready").exists, what="the program")
    (folder / "images").mkdir()
    said = run(STASIS, "checkpoint", "--pid", started.pid, "--images-dir", folder / "images", code=1)
    assert "is in another mnt namespace than the root of its tree" in said
