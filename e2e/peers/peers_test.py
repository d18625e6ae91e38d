"""Stasis and the other programs that know CRIU's images: each reads and restores what the other wrote.

Run by `./dev peers`; docs/interoperability.md has the results.
"""

import inspect
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from e2e import journey, programs_test, targets_test
from e2e.host import Program
from e2e.paths import ROOT
from e2e.peers.programs import DumpedByCriu, RestoredByCriu
from e2e.peers.runtime import PeerRuntime
from e2e.peers.tools import CAP_SYS_RESOURCE, has_capability, in_tree
from e2e.redis import Redis
from e2e.testbed.cri import RESTRICTED
from e2e.wait import until

NO_SEMAPHORE = "CRIU's images have no place for EFD_SEMAPHORE"
RESTARTED = "a call that restarts by a restart block is EINTR in CRIU's images"
OUR_FIELDS = "CRIU's images have no place for timer slack, I/O priority and the like"
NO_MPTCP = "CRIU knows no MPTCP"
HOST_IPC = "CRIU takes System V segments only with an IPC namespace of the tree's own"
ZOMBIES = "checkpointctl looks for a zombie's memory, which CRIU does not write either"

#: What cannot be, by program and way, and why. Strict: who makes it work takes it from the list.
DIFFER = {
    ("eventfd", "RestoredByCriu"): "CRIU restores counters of 32 bits, and no semaphores",
    ("eventfd", "DumpedByCriu"): NO_SEMAPHORE,
    ("syscalls", "RestoredByCriu"): "CRIU does not know what was left of a wait, which is in a field of ours",
    ("syscalls", "DumpedByCriu"): RESTARTED,
    ("zombies", "Shown"): ZOMBIES,
    ("settings", "RestoredByCriu"): OUR_FIELDS,
    ("settings", "DumpedByCriu"): OUR_FIELDS,
    ("mptcp", "RestoredByCriu"): NO_MPTCP,
    ("mptcp", "DumpedByCriu"): NO_MPTCP,
    ("system_v_shm", "RestoredByCriu"): HOST_IPC,
    ("system_v_shm", "DumpedByCriu"): HOST_IPC,
    ("system_v_huge", "RestoredByCriu"): HOST_IPC,
    ("system_v_huge", "DumpedByCriu"): HOST_IPC,
    ("system_v_parts", "RestoredByCriu"): HOST_IPC,
    ("system_v_parts", "DumpedByCriu"): HOST_IPC,
    ("chroot", "DumpedByCriu"): "CRIU names a socket as its process's root directory had it",
    ("no_vdso", "RestoredByCriu"): "CRIU wants the vDSO whole or not at all",
    ("system_v_shm", "Decoded"): "crit 4.2 cannot encode a segment's content again (Python 3.14)",
    ("proc_files", "DumpedByCriu"): "CRIU does not say whose mounts a dead process's mountinfo shows",
    ("locks", "DumpedByCriu"): "CRIU misses a child's POSIX lock on a description shared with its parent",
    ("unix_paths", "DumpedByCriu"): "CRIU refuses sockets whose path was renamed or is relative",
    ("deleted", "RestoredByCriu"): "CRIU cannot restore a folder in a deleted folder",
    ("dev_shm", "DumpedByCriu"): "CRIU wants --link-remap for the file of a semaphore",
    ("orphans", "RestoredByCriu"): "CRIU wants the leader of each session",
    ("seccomp", "RestoredByCriu"): "filters that CRIU restores are not common to threads any more",
    ("stopped", "RestoredByCriu"): "CRIU is stopped by a SIGSTOP that is pending",
    ("pidfd", "Shown"): ZOMBIES,
    ("leases", "RestoredByCriu"): "CRIU's restore breaks a lease once more than ours",
    ("bpf_maps", "Decoded"): "crit 4.2 cannot encode a map's content again (Python 3.14)",
    ("changing_memory", "Shown"): "checkpointctl does not look into parent/",
    ("machine_terminals", "DumpedByCriu"): "CRIU has one description for all virtual terminals",
    ("tun_devices", "RestoredByCriu"): "CRIU keeps no send buffer of a tun device",
    ("tun_devices", "DumpedByCriu"): "what interfaces CRIU's network had has to be made by somebody else (--join-ns)",
}
# What is no state to CRIU, either way.
DIFFER |= {(name, kind): reason for kind in ("RestoredByCriu", "DumpedByCriu") for name, reason in {
    "autofs": "CRIU wants a mount namespace to have a root of its own",
    "bpf_maps": "Debian's CRIU is built without BPF maps",
    "cgroups": "CRIU mounts each hierarchy anew, which one that is in use does not allow",
    "dead_pidfd": "CRIU knows no pidfds of threads (PIDFD_THREAD)",
    "exit_signal": "CRIU's images have no place for the signal of a child's end",
    "fanotify": "CRIU knows no marks of file systems",
    "many_threads": "CRIU keeps no time stamp counter that is off",
    "other_networks": "CRIU knows no network and UTS namespaces of children",
    "io_uring": "CRIU knows no rings",
    "io_uring_registered": "CRIU knows no rings",
    "message_queues": "CRIU knows no POSIX message queues",
    "multicast": "CRIU keeps no memberships in multicast groups",
    "owners": "CRIU knows no POSIX message queues",
    "pipes": "CRIU knows no pipes of packets",
    "pseudo_terminals": "CRIU wants a /dev/pts file of what controls a session, /dev/tty is not enough",
    "raw_sockets": "CRIU does not keep whom a raw socket is connected to",
    "scheduling": "CRIU keeps no processors",
    "sealed_memory": "CRIU knows no sealed memory",
    "shared_tables": "CRIU shares no working directory (CLONE_FS)",
    "tcp_established": "not asked for here (--tcp-established)",
    "terminal_data": "CRIU keeps of lines neither how they end nor the beginning of one",
    "user_namespace": "CRIU wants all namespaces of a tree to be owned by its user namespace",
    "unix_connections": "CRIU keeps no names of accepted connections",
    "unix_messages": "CRIU keeps neither senders nor credentials of messages",
}.items()}

PROGRAMS = {name: (targets_test.test_target, {"name": name}) for name in targets_test.NAMES}
PROGRAMS |= {name.removeprefix("test_"): (test, {}) for name, test in vars(programs_test).items()
             if name.startswith("test_")}


@pytest.fixture
def run(folder):
    """Runs a program of another test module, which this module dumps and restores in its own way."""
    started = []

    def run_program(name, kind, passes):
        test, arguments = PROGRAMS[name]

        def start(*command, **popen):
            started.append(kind(folder, command, **popen))
            return started[-1]

        given = {"start": start, "passes": passes, "folder": folder, **arguments}
        wanted = inspect.signature(test).parameters
        test(**{key: value for key, value in given.items() if key in wanted})

    yield run_program
    for program in started:
        program.end()


def cases(*kinds):
    for name in PROGRAMS:
        for kind in kinds:
            marks = []
            if (name, kind.__name__) in DIFFER:
                marks.append(pytest.mark.xfail(strict=True, reason=DIFFER[name, kind.__name__]))
            yield pytest.param(name, kind, marks=marks, id=f"{name}-{kind.__name__}")


def needs_sys_resource():
    if not has_capability(CAP_SYS_RESOURCE):
        pytest.skip("without CAP_SYS_RESOURCE CRIU cannot read the limits of another user's process")


@pytest.mark.parametrize("name, kind", cases(RestoredByCriu, DumpedByCriu))
def test_goes_on(run, name, kind):
    if (name, kind) == ("creds", DumpedByCriu):
        needs_sys_resource()
    run(name, kind, ["--kill"])


# Decodes every image and encodes it again, and asks for the views that crit makes of all of them; as the
# command line does, but in one process.
CRIT = """
import contextlib, crit.__main__, glob, json, os, sys
os.chdir(sys.argv[1])
def crit_(*words):
    sys.argv = ["crit", *words]
    crit.__main__.main()
raw = ("pages-", "stasis-", "tmpfs-", "ifaddr-", "route-", "route6-", "rule-", "iptables-", "ip6tables-", "nftables-")
for image in glob.glob("*.img"):
    if not image.startswith(raw):  # as the programs have written them that CRIU calls, too
        crit_("decode", "-i", image, "-o", image + ".json")
        crit_("encode", "-i", image + ".json", "-o", image + ".again")
pids = [entry["pid"] for entry in json.load(open("pstree.img.json"))["entries"]]
has_zombie = not all(os.path.exists(f"mm-{pid}.img") for pid in pids)  # but for "ps", views look for these
for view in ["ps"] if has_zombie else ["ps", "fds", "mems", "rss"]:
    with open(view, "w") as out, contextlib.redirect_stdout(out):
        crit_("x", ".", view)
"""

#: What may hold fields of our own (engine/image/schema, "stasis_"), which crit skips.
EXTENDED = ("files.img", "core-", "mm-", "mountpoints-", "netns-", "tty-info.img", "tty-data.img", "sk-queues.img",
            "ipcns-sem-")


class Decoded(Program):
    """Dumped by us, left running, and its images read by crit."""

    def checkpoint(self, fate="--kill"):
        images = super().checkpoint("--leave-running")
        in_tree(images, "python3", "-c", CRIT, images)
        for again in images.glob("*.again"):
            image = again.with_suffix("")
            same = again.read_bytes() == image.read_bytes()
            assert same or image.name.startswith(EXTENDED), f"{image.name} is another after crit"
        tree = json.loads((images / "pstree.img.json").read_text())["entries"]
        assert tree[0]["pid"] == self.pid
        assert str(self.pid) in (images / "ps").read_text()
        return images


class Shown(Program):
    """Dumped by us into an archive, left running, and shown by checkpointctl."""

    def checkpoint(self, fate="--kill"):
        for attempt in range(4):
            archive = self.folder / f"checkpoint-{attempt}.tar"
            journey.stasis("checkpoint", "--pid", self.pid, "--output", archive)
            # A shell that runs short commands may have a zombie at any moment: see ZOMBIES.
            if attempt == 3 or not has_zombie(archive):
                break
        shown(self.folder, archive, str(self.pid))
        return archive


def has_zombie(archive):
    """True when a process of the archive has no memory."""
    processes = json.loads(journey.stasis("inspect", "--json", archive))["processes"]
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
    return any(f"checkpoint/mm-{process['pid']}.img" not in names for process in processes)


def shown(folder, archive, *words):
    """checkpointctl reads all of an archive, and `words` are in the description."""
    described = in_tree(folder, "checkpointctl", "inspect", "--all", archive)
    for word in [*words, "Process tree", "CRIU dump statistics", "Open files"]:
        assert word in described, described
    in_tree(folder, "checkpointctl", "show", archive)
    assert archive.name in in_tree(folder, "checkpointctl", "list", archive.parent)
    assert "MEMORY SIZE" in in_tree(folder, "checkpointctl", "memparse", archive)
    listed = in_tree(folder, "tar", "--list", "--file", archive)
    assert "checkpoint/inventory.img" in listed


@pytest.mark.parametrize("name, kind", cases(Decoded, Shown))
def test_is_read(run, name, kind):
    run(name, kind, ["--leave-running"])


def test_a_compressed_archive_is_read_by_checkpointctl(start, folder):
    sleeper = start("sleep", "60")
    archive = folder / "checkpoint-compressed.tar"
    journey.stasis("checkpoint", "--pid", sleeper.pid, "--output", archive, "--compress", "zstd")
    described = in_tree(folder, "checkpointctl", "inspect", "--all", archive)
    assert str(sleeper.pid) in described and "Process tree" in described, described
    assert "MEMORY SIZE" in in_tree(folder, "checkpointctl", "memparse", archive)


# Of the image from which the containers in unit/testdata/archives were run; a program's mapped file must be
# the same at its restore.
ELSEWHERE_BUSYBOX_BYTES = 1982256

COUNTING = 'i=0; while :; do echo "$i"; i=$((i + 1)); sleep 0.02; done'


@pytest.fixture(scope="module")
def peer(bed):
    with PeerRuntime(bed) as runtime:
        yield runtime


@pytest.fixture
def pod_of():
    """Runs pods on either runtime, which are removed after the test."""
    made = []

    def run_pod(cri, name):
        pod = cri.run_pod(name)
        made.append((cri, pod))
        return pod

    yield run_pod
    for cri, pod in made:
        cri.remove_pod(pod.id)


def counts(bed, pod):
    log = bed.logs / pod.config["metadata"]["name"] / "count.log"
    if not log.exists():
        return []
    return [int(line.split(" ", 3)[3]) for line in log.read_text(encoding="utf-8").splitlines()]


def checkpoint_of_counting(bed, cri, run_pod, name, security):
    """The archive of a container that counts, and what it had counted before."""
    pod = run_pod(cri, name)
    container = cri.run(pod, "count", bed.image("busybox"), command=["sh", "-c", COUNTING],
                        security=security)
    until(lambda: len(counts(bed, pod)) > 20, what="numbers")
    archive = bed.folder / f"checkpoint-{name}.tar"  # as checkpointctl looks for them
    before = counts(bed, pod)[-1]
    journey.checkpoint(cri, container, archive)
    shown(bed.folder, archive, "Overview of mounts", "/etc/hosts")
    return archive, before


def goes_on_in(bed, cri, run_pod, archive, before, security):
    reference = journey.push_image(archive, f"{bed.registry.address}/{archive.stem}:1")
    pod = run_pod(cri, f"{archive.stem}-again")
    cri.run(pod, "count", reference, security=security)
    until(lambda: (counts(bed, pod) or [0])[-1] > before, what="more numbers")
    numbers = counts(bed, pod)
    # Containerd's archive has a log that was copied once the container ran on: the restored one writes some
    # numbers again. None is missing, and it did not begin anew.
    assert all(after <= number + 1 for number, after in zip(numbers, numbers[1:])), numbers
    assert numbers.count(0) <= 1, numbers


@pytest.mark.parametrize("security", [None, RESTRICTED], ids=["default", "restricted"])
@pytest.mark.parametrize("dumper, restorer", [("stasis", "containerd"), ("containerd", "stasis"),
                                              ("containerd", "containerd")])
def test_a_container_goes_on(bed, peer, pod_of, dumper, restorer, security):
    if security and dumper == "containerd":
        needs_sys_resource()
    runtimes = {"stasis": bed.cri, "containerd": peer.cri}
    name = f"{dumper}-{restorer}-{'restricted' if security else 'default'}"
    archive, before = checkpoint_of_counting(bed, runtimes[dumper], pod_of, name, security)
    goes_on_in(bed, runtimes[restorer], pod_of, archive, before, security)


@pytest.fixture(scope="module")
def before_peer(peer):
    with peer.behind_stasisd() as cri:
        yield cri


@pytest.mark.parametrize("security", [None, RESTRICTED], ids=["default", "restricted"])
def test_stasisd_serves_in_front_of_that_containerd(bed, before_peer, pod_of, security):
    assert before_peer.call("Version")["runtime_version"].startswith("2.")
    name = f"before-peer-{'restricted' if security else 'default'}"
    archive, before = checkpoint_of_counting(bed, before_peer, pod_of, name, security)
    goes_on_in(bed, before_peer, pod_of, archive, before, security)


def connections(pid):
    """The lines of established and half closed TCP connections of a process's network namespace."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text(encoding="utf-8").splitlines()[1:]
    return [line for line in lines if line.split()[3] in ("01", "08")]


def test_containerd_restores_redis(bed, peer, pod_of):
    first = pod_of(bed.cri, "peer-redis-first")
    container = bed.cri.run(first, "redis", bed.image("redis"))
    redis = until(lambda: Redis.connect(first.ip), what="redis")
    journey.fill(redis)
    run_id = redis.info()["run_id"]
    redis.close()
    pid = bed.cri.pid(container)
    # Runc passes --tcp-close only when /etc/criu/runc.conf says so.
    until(lambda: not connections(pid), what="the end of the connection")
    archive = bed.folder / "checkpoint-redis.tar"
    journey.checkpoint(bed.cri, container, archive)
    image = journey.push_image(archive, f"{bed.registry.address}/peer-redis:1")
    second = pod_of(peer.cri, "peer-redis-second")
    peer.cri.run(second, "redis", image)
    redis = until(lambda: Redis.connect(second.ip), what="the restored redis")
    assert redis.info()["run_id"] == run_id
    assert journey.missing_keys(redis) == 0


@pytest.mark.parametrize("archive", sorted((ROOT / "unit/testdata/archives").glob("*-counter.tar")),
                         ids=lambda archive: archive.stem)
def test_an_archive_from_elsewhere_goes_on(bed, pod_of, archive):
    busybox = Path("/bin/busybox").stat().st_size
    if busybox != ELSEWHERE_BUSYBOX_BYTES:
        pytest.skip(f"the container's program was another busybox, not this one of {busybox} bytes")
    base = bed.image("busybox")
    bed.cri.pull(base)
    subprocess.run(["ctr", "--address", bed.folder / "containerd.sock", "--namespace", "k8s.io", "images",
                    "tag", "--force", base, "localhost/busybox:1"], check=True, capture_output=True)
    image = journey.push_image(archive, f"{bed.registry.address}/{archive.stem}:1")
    pod = pod_of(bed.cri, archive.stem.split("-")[0])
    container = bed.cri.run(pod, "count", image)
    log = bed.logs / pod.config["metadata"]["name"] / "count.log"
    before = log.read_text(encoding="utf-8").count("\n")
    until(lambda: log.read_text(encoding="utf-8").count("\n") > before + 10, what="more numbers")
    last = [line.split(" ", 3)[3] for line in log.read_text(encoding="utf-8").splitlines()][-10:]
    assert last == [str(int(last[0]) + i) for i in range(10)]
    assert int(last[-1]) > 15  # what was counted there is in the log's beginning
    assert bed.cri.exec(container, "cat", "/tmp/state").out == "kept\n"
