"""Trees on the host with a mount namespace whose root is not the machine's: made again with all that is mounted."""

import os
import subprocess
from pathlib import Path

import pytest

from e2e.host import descendants
from e2e.paths import STASIS
from e2e.wait import until

# A root with the machine's programs, its own /proc, files of its own in memory, and mounts that share what is mounted.
SCRIPT = """
cd "$0"
mount --bind . . && cd "$0"
mkdir -p usr proc run data other dev/pts old
mount --bind /usr usr
mount -t proc proc proc
mount -t tmpfs -o mode=750,nosuid own run
mount -t devpts -o newinstance,ptmxmode=666 pts dev/pts
mkdir run/shared run/copy
mount --bind run/shared run/shared && mount --make-shared run/shared
mount --bind run/shared run/copy && mount --make-slave run/copy
mkdir run/shared/sub && mount -t tmpfs -o ro below run/shared/sub
echo kept >run/file
echo root >data/file
mount --bind data other
mount -o remount,ro,bind other
pivot_root . old
exec /usr/bin/sh -c 'umount -l /old; cd /data; exec 3</run/file </run/file >out 2>&1; touch ready; exec sleep 600'
"""
LOOK = """
cat /run/file /other/file; cat <&3; stat -c %a /run; pwd -P
touch /other/x 2>&- || touch /run/shared/sub/x 2>&- || echo read-only
mkdir /run/shared/new; mount -t tmpfs more /run/shared/new; grep -c /new /proc/self/mountinfo; umount /run/shared/new
rmdir /run/shared/new
"""
SEEN = "kept\nroot\nkept\n750\n/data\nread-only\n2\n"


def run(*words, code=0):
    done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, text=True, capture_output=True,
                          timeout=60, check=False)
    assert done.returncode == code, done
    return done.stdout + done.stderr


@pytest.fixture
def root(folder):
    place = folder / "root"
    place.mkdir()
    for name in ("bin", "lib", "lib64"):
        (place / name).symlink_to(f"usr/{name}")
    return place


@pytest.fixture
def program(start, root):
    started = start("unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--propagation", "private",
                    "sh", "-ec", SCRIPT, root)
    until((root / "data/ready").exists, what="the program")
    return started


def dump(pid, images, *options):
    images.mkdir()
    run(STASIS, "checkpoint", "--pid", pid, "--images-dir", images, "--kill", *options)
    return images


def look(pid):
    script = ["nsenter", "-t", pid, "--mount", "--pid", "--root", f"--wd=/proc/{pid}/cwd", "sh", "-c", LOOK]
    with open(f"/proc/{pid}/fd/3", encoding="utf-8") as kept:  # opened anew, at its beginning
        return subprocess.run([str(word) for word in script], text=True, capture_output=True, check=False, timeout=60,
                              preexec_fn=lambda: os.dup2(kept.fileno(), 3), pass_fds=[3]).stdout


def mounts_of(pid):
    """Where, of what, with which flags, and how it shares; not the numbers, which are given anew."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8") as file:
        lines = sorted((line.split() for line in file), key=lambda fields: fields[4])
    known = {}  # groups, which get numbers in the order of the places

    def sharing(word):
        kind, _, group = word.partition(":")
        return kind, group and known.setdefault(group, len(known))

    return [(fields[4], fields[5], *map(sharing, fields[6:fields.index("-")]), fields[fields.index("-") + 1])
            for fields in lines]


def moved(pid, images, root):
    """The program again, below the same root, as the process that it is now."""
    dump(pid, images, "--external", "mnt[/usr]:programs")
    pidfile = images / "pid"
    run(STASIS, "restore", "--images-dir", images, "--detach", "--pidfile", pidfile, "--root", root,
        "--external", "mnt[programs]:/usr")
    return int(pidfile.read_text(encoding="utf-8"))


def test_a_root_of_its_own_comes_back_with_its_mounts(program, root, folder):
    pid = descendants(program.pid)[1]
    before = mounts_of(pid)
    here = mounts_of("self")
    for time in range(2):
        pid = moved(pid, folder / f"images-{time}", root)
        assert mounts_of(pid) == before
        assert look(pid) == SEEN
    os.kill(pid, 9)
    assert mounts_of("self") == here


def test_what_a_root_needs_is_asked_for(program, root, folder):
    pid = descendants(program.pid)[1]
    images = dump(pid, folder / "images")
    restore = [STASIS, "restore", "--images-dir", images, "--detach"]
    assert "--root DIR" in run(*restore, code=1)
    assert "--external 'mnt[/usr]:PATH'" in run(*restore, "--root", root, code=1)
    run(*restore, "--root", root, "--external", "mnt[/usr]:/usr", "--pidfile", folder / "pid")
    os.kill(int((folder / "pid").read_text(encoding="utf-8")), 9)


def test_what_is_of_the_machine_stays_the_machines(start, root, folder):
    script = "cd $0; mount --bind . .; cd $0; mkdir -p usr dev proc old; mount --rbind /usr usr; mount --rbind /dev dev; " \
             "mount -t proc proc proc; pivot_root . old; exec /usr/bin/sh -c 'umount -l /old; exec >out 2>&1 </dev/null; " \
             "touch ready; exec sleep 600'"
    program = start("unshare", "--mount", "--propagation", "private", "sh", "-ec", script, root)
    until((root / "ready").exists, what="the program")

    def device(pid, place):
        return os.stat(f"/proc/{pid}/root{place}").st_dev

    images = dump(program.pid, folder / "images", "--external", "mnt[]")
    program.parent.wait(10)
    restore = [STASIS, "restore", "--images-dir", images, "--detach", "--root", root, "--pidfile", folder / "pid"]
    assert "was given from outside" in run(*restore, code=1)
    run(*restore, "--external", "mnt[]")
    pid = int((folder / "pid").read_text(encoding="utf-8"))
    try:
        assert device(pid, "/dev/pts") == os.stat("/dev/pts").st_dev
        assert device(pid, "/dev") == os.stat("/dev").st_dev
    finally:
        os.kill(pid, 9)


HIDDEN = """mkdir -p deep/er; mount -t tmpfs first deep/er; echo first >deep/er/file; mount -t tmpfs second deep; mkdir deep/er
mount -t tmpfs third deep/er; echo third >deep/er/file; mount -t tmpfs fourth deep/er; echo fourth >deep/er/file
"""
UNCOVER = "cd /deep/er; cat file; cd /; umount /deep/er; cat /deep/er/file; umount /deep/er; umount /deep; cat /deep/er/file"


def test_what_is_in_mounts_that_others_hide_comes_back(start, root, folder):
    script = SCRIPT.replace("echo kept >run/file", HIDDEN + "echo kept >run/file")
    started = start("unshare", "--mount", "--pid", "--fork", "--propagation", "private", "sh", "-ec", script, root)
    until((root / "data/ready").exists, what="the program")
    pid = descendants(started.pid)[1]
    before = mounts_of(pid)
    images = dump(pid, folder / "images", "--external", "mnt[/usr]:programs")
    run(STASIS, "restore", "--images-dir", images, "--detach", "--pidfile", folder / "pid", "--root", root, "--external",
        "mnt[programs]:/usr")
    pid = int((folder / "pid").read_text(encoding="utf-8"))
    after = mounts_of(pid)
    seen = run("nsenter", "-t", pid, "--mount", "--root", f"--wd=/proc/{pid}/cwd", "sh", "-c", UNCOVER)
    os.kill(pid, 9)
    assert after == before and seen == "fourth\nthird\nfirst\n"


def test_a_terminal_of_its_own_is_mounted_again(start, root, folder):
    command = "mount --bind \\$(tty) /dev/console; touch ready; exec sleep 601"
    script = SCRIPT.replace("touch ready; exec sleep 600", f'exec script -fqc "{command}" /run/log') \
        .replace("pivot_root", "ln -s pts/ptmx dev/ptmx; touch dev/console; pivot_root")
    started = start("unshare", "--mount", "--pid", "--fork", "--propagation", "private", "sh", "-ec", script, root)
    until((root / "data/ready").exists, what="the program")
    pid = descendants(started.pid)[1]
    before = mounts_of(pid)
    assert any(mount[0] == "/dev/console" for mount in before)
    for time in range(2):
        pid = moved(pid, folder / f"images-{time}", root)
        assert mounts_of(pid) == before
        with open(f"/proc/{pid}/root/dev/console", "w", encoding="utf-8") as console:
            console.write(f"written {time}\n")
        log = Path(f"/proc/{pid}/root/run/log")
        until(lambda log=log, time=time: f"written {time}" in log.read_text(encoding="utf-8"), what="what was written")
    os.kill(pid, 9)
