"""Mounts that processes of a container made: they come back with what is in them, in their places and as they were;
what cannot is refused, by its place."""

import json
import tarfile

import pytest

from e2e import journey
from e2e.container_bad_input_test import repacked
from e2e.testbed.cri import CriError
from e2e.wait import until

MAY_MOUNT = {"capabilities": {"add_capabilities": ["SYS_ADMIN"]}, "seccomp": {"profile_type": "RuntimeDefault"}}
GOES_ON = 'exec 4>>/ticks; echo ready; while :; do echo tick >&4; sleep 0.05; done'


class Mounting:
    """A container whose shell has mounted what its script says, and goes on in a loop."""

    def __init__(self, bed, pods, folder, script, name="mounting", security=None, image="busybox", **config):
        self.bed, self.pods, self.folder, self.name = bed, pods, folder, name
        self.security = security or MAY_MOUNT
        self.config = config
        self.round = 0
        self.pod = pods(name)
        self.container = bed.cri.run(self.pod, "mount", bed.image(image), security=self.security,
                                     command=["sh", "-ec", script + "\n" + GOES_ON], **config)
        until(lambda: "ready" in bed.cri.log(self.pod, "mount"), what="the mounts")

    def sh(self, script):
        done = self.bed.cri.exec(self.container, "sh", "-c", script)
        assert done.code == 0, done
        return done.out

    def mounts(self):
        """Of each mount: place, options, type, whether it is shared and its file system read-only."""
        rows = []
        for line in self.sh("cat /proc/1/mountinfo").splitlines():
            fields, of_type = line.split(" - ")
            fields = fields.split()
            sharing = sorted(word.split(":")[0] for word in fields[6:])
            if fields[4] != "/dev/stasis-placeholder":
                kind, options = of_type.split()[0], of_type.split()[-1]
                rows.append((fields[4], fields[5], kind, sharing, options.split(",")[0]))
        return sorted(rows)

    def checkpoint(self):
        self.archive = self.folder / f"{self.name}-{self.round}.tar"
        journey.checkpoint(self.bed.cri, self.container, self.archive)
        return self.archive

    def restore(self, goes_on=True):
        image = journey.push_image(self.archive, f"{self.bed.registry.address}/{self.name}-{self.round}:1")
        self.bed.cri.remove_pod(self.pod.id)
        self.round += 1
        self.pod = self.pods(f"{self.name}-{self.round}")
        self.container = self.bed.cri.run(self.pod, "mount", image, security=self.security, **self.config)
        if goes_on:
            self.goes_on()

    def goes_on(self):
        before = len(self.sh("cat /ticks"))
        until(lambda: len(self.sh("cat /ticks")) > before, what="more ticks")


def comes_back(mounting, look="true"):
    """Twice through a checkpoint and a restore."""
    mounts, seen = mounting.mounts(), mounting.sh(look)
    for _ in range(2):
        mounting.checkpoint()
        mounting.restore()
        assert mounting.mounts() == mounts
        assert mounting.sh(look) == seen
    return mounts


@pytest.fixture
def mounting(bed, pods, folder):
    return lambda script, **config: Mounting(bed, pods, folder, script, **config)


def test_a_tmpfs_comes_back_with_all_that_is_in_it(mounting):
    made = mounting("""
        mkdir /own; mount -t tmpfs -o size=8m,mode=711,nosuid own /own
        cd /own; echo kept >file; ln file second; ln -s file link; mkfifo pipe; mknod null c 1 3
        mkdir -m 1750 folder; chown 5:6 folder; echo inner >folder/inner; chmod 4755 folder/inner
        truncate -s 100M holes; echo end >>holes; truncate -s 1G all-hole; chown 7:8 /own; chmod 1733 /own
        touch -d 2001-02-03 folder file; exec 3<file 5>>grows; rm -f gone; echo x >&5; cd /""")
    comes_back(made, "cd /own; stat -c '%n %A %u %g %s %h %Y %t' . * folder/*; cat file folder/inner;"
                     "readlink link; md5sum holes; df . | tail -n 1; find . -size +1k | sort; readlink /proc/1/fd/3")


def test_a_tmpfs_that_was_made_read_only_comes_back_full(mounting):
    made = mounting("mkdir /own; mount -t tmpfs own /own; echo kept >/own/file; mount -o remount,ro /own")
    comes_back(made, "cat /own/file")


def test_mounts_in_mounts_come_back_with_what_they_hide(mounting):
    made = mounting("""
        mkdir /own; mount -t tmpfs own /own; mkdir /own/inner; echo hidden >/own/inner/hidden
        mkdir /bound; mount --bind /own/inner /bound
        mount -t tmpfs inner /own/inner; mkdir /own/inner/deep; echo deep >/own/inner/deep/file
        mount -t tmpfs deep /own/inner/deep; echo deepest >/own/inner/deep/file""")
    comes_back(made, "cat /own/inner/deep/file /bound/hidden")
    assert made.sh("umount /own/inner/deep; cat /own/inner/deep/file; umount /own/inner; cat /own/inner/hidden"
                   ) == "deep\nhidden\n"


def test_a_tmpfs_over_another_at_the_same_place_comes_back(mounting):
    made = mounting("""
        mkdir /own; mount -t tmpfs under /own; echo under >/own/file; mount -t tmpfs over /own; echo over >/own/file""")
    comes_back(made, "cat /own/file")
    assert made.sh("umount /own; cat /own/file") == "under\n"


def test_bind_mounts_of_folders_and_files_come_back(mounting, place):
    made = mounting("""
        mkdir -p /to /etc/a /own /to-volume /dev/made; echo a >/etc/a/file; touch /over /share/inside
        mount --bind /etc/a /to; mount -o remount,bind,ro,nosuid,noexec,noatime /to
        mount -t tmpfs own /own; echo over >/own/file; mount --bind /own/file /over
        mkdir /share/part; mount --bind /share/part /to-volume; echo volume >/to-volume/file
        mount --bind /etc/a /dev/made; mount --bind /etc/a /share/inside-2 2>/dev/null ||
          { mkdir /share/inside-2; mount --bind /etc/a /share/inside-2; }""",
                    mounts=[{"container_path": "/share", "host_path": str(place)}])
    comes_back(made, "cat /to/file /over /to-volume/file /dev/made/file /share/inside-2/file; ! touch /to/x")
    made.sh("echo more >>/own/file")
    assert made.sh("cat /over") == "over\nmore\n"


def test_what_a_volume_brings_along_is_not_the_containers_own(mounting, mounted, folder):
    (mounted("size=1m") / "file").write_text("the host's")
    made = mounting("mkdir /share/own; mount -t tmpfs own /share/own; echo own >/share/own/file",
                    mounts=[{"container_path": "/share", "host_path": str(folder)}])
    comes_back(made, "cat /share/place/file /share/own/file")
    assert not (folder / "own" / "file").exists()


SERVER = """
import mmap, os, socket
os.chdir("/own/folder")
file, gone = open("/own/file", "r+b"), open("/own/gone", "w+b", 0)
gone.write(b"gone"), os.unlink("/own/gone")
area = mmap.mmap(file.fileno(), 4)
server = socket.socket(socket.AF_UNIX)
server.bind("/own/socket"), server.listen()
print("ready", flush=True)
while True:
    client = server.accept()[0]
    area[0] += 1
    client.sendall(area[:] + os.pread(gone.fileno(), 9, 0) + os.getcwd().encode() + file.read())
    client.close(), file.seek(0)
"""
CLIENT = """
import socket
server = socket.socket(socket.AF_UNIX)
server.connect("/own/socket")
print(server.makefile().read())
"""


def test_what_is_open_on_a_mount_stays_open(mounting):
    made = mounting("mkdir /own; mount -t tmpfs own /own; mkdir /own/folder; printf 0123 >/own/file\n"
                    f"exec python3 -c '{SERVER}'", image="python")
    ask = f"python3 -c '{CLIENT}'"
    assert made.sh(ask) == "1123gone/own/folder1123\n"
    for digit in "23":
        made.checkpoint()
        made.restore(goes_on=False)
        assert made.sh(ask) == f"{digit}123gone/own/folder{digit}123\n"


def test_file_systems_of_the_kernels_come_back(mounting):
    made = mounting("""
        mkdir /p /s /q /t; mount -t proc -o ro proc /p; mount -t sysfs sysfs /s; mount -t mqueue q /q
        mount -t devpts -o ptmxmode=666 pts /t""")
    comes_back(made, "cat /p/1/comm; ls /s /t")


def test_an_automount_asks_its_daemon_again(mounting):
    made = mounting("mkfifo /asked; exec 5<>/asked; mkdir /auto\n"
                    "mount -t autofs -o fd=5,pgrp=1,minproto=5,maxproto=5,indirect own /auto; mkdir /auto/offered")
    comes_back(made, "ls /auto")
    # Who looks for something waits, and the daemon reads for what.
    assert "wanted" in made.sh("stat /auto/wanted & head -c 304 /asked | tr -cd a-z; kill $!")


def test_what_was_changed_about_the_runtimes_mounts_comes_back(mounting):
    made = mounting("umount /dev/mqueue; mount -o remount,bind,ro /dev/shm; mount -t tmpfs over /dev/shm;"
                    "echo over >/dev/shm/over; mount --make-private /; mount --make-rshared /dev;"
                    "mkdir /u; mount -t tmpfs u /u; mount --make-unbindable /u; echo u >/u/file;"
                    "mkdir /v; mount -t tmpfs v /v; mount --make-shared /v")
    mounts = comes_back(made, "cat /dev/shm/over /u/file")
    assert "/dev/mqueue" not in [row[0] for row in mounts]


@pytest.mark.parametrize("script, reason", [
    ("mount -t ramfs r /own", "ramfs at /own.*only tmpfs"),
    ("mkdir /l /u /w; mount -t tmpfs t /u; mkdir /u/u /u/w;"
     "mount -t overlay -o lowerdir=/l,upperdir=/u/u,workdir=/u/w o /own", "overlay at /own.*only tmpfs"),
    ("mount -t tmpfs a /own; dd if=/dev/zero of=/own/large bs=1M count=65 2>/dev/null", "/own: .*64 MiB"),
    ("mkdir /x; mount --bind /x /own; rmdir /x", "at /own.*was removed"),
    ("touch /own/ns; mount --bind /proc/self/ns/uts /own/ns", "nsfs at /own/ns.*only tmpfs"),
], ids=["ramfs", "overlay", "large", "removed", "namespace"])
def test_what_cannot_come_back_is_named(mounting, script, reason):
    made = mounting(f"mkdir /own; {script}")
    with pytest.raises(CriError, match=reason):
        made.checkpoint()
    made.goes_on()


def test_a_check_names_it_before(mounting, bed):
    made = mounting("mkdir /own; mount -t ramfs r /own")
    with pytest.raises(journey.StasisError, match="1 obstacle"):
        journey.stasis("check", "--container", made.container, "--runtime-endpoint", bed.cri.endpoint)
    made.sh("umount /own")
    journey.stasis("check", "--container", made.container, "--runtime-endpoint", bed.cri.endpoint)


def test_who_may_not_mount_gets_none(mounting, bed):
    made = mounting("mkdir /own; mount -t tmpfs own /own")
    made.checkpoint()
    made.security = None
    with pytest.raises(CriError, match="mounts that processes of it had made.*Operation not permitted"):
        made.restore()


def test_who_may_not_call_mount_gets_none(mounting, folder):
    made = mounting("mkdir /own; mount -t tmpfs own /own")
    made.checkpoint()
    profile = folder / "no-mount.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]}))
    made.security = {**MAY_MOUNT, "seccomp": {"profile_type": "Localhost", "localhost_ref": str(profile)}}
    with pytest.raises(CriError, match="its seccomp profile does not allow mount"):
        made.restore()


def images_of(archive, kind):
    with tarfile.open(archive) as tar:
        return [name for name in tar.getnames() if name.startswith(f"checkpoint/{kind}")]


@pytest.mark.parametrize("image, before, after, reason", [
    ("mountpoints", b"/own", b"/../", "not a path of a mount"),
    ("mountpoints", b"/own", b"/lnk", "Too many levels of symbolic links"),
    ("mountpoints", b"/dir/bound", b"/../../etc", "not a path of a file system"),
    ("mountpoints", b"/dir/bound", b"/lnk/1/cwd", "Too many levels of symbolic links"),
    ("mountpoints", b"size=1024k", b"evil=1024k", "option evil"),
    ("mountpoints", b"size=1024k", b"size=xxxxk", "size=xxxxk: Invalid argument"),
    ("tmpfs-dev", b"\x1f\x8b", b"\x1f\x8c", "content of a tmpfs"),
], ids=["climbs", "link", "source-climbs", "source-link", "option", "value", "tar"])
def test_what_no_checkpoint_says_is_refused(mounting, image, before, after, reason):
    made = mounting("mkdir -p /own /dir/bound /to; mount -t tmpfs -o size=1024k own /own; mount --bind /dir/bound /to;"
                    "ln -s /proc /lnk")
    archive = made.checkpoint()
    made.archive = repacked(archive, {name: lambda content: content.replace(before, after)
                                      for name in images_of(archive, image)})
    with pytest.raises(CriError, match=reason):
        made.restore()
