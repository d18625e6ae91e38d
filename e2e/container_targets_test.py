"""The target programs in a container, all at once: plain, through a checkpoint and a restore in another pod,
and twice through it."""

import json

import pytest

from e2e import journey
from e2e.paths import ROOT, TARGETS
from e2e.testbed.cri import CriError
from e2e.wait import until

# An option of the command line that the CRI does not have; what a container's rights do not allow says 77.
NOT_IN_A_CONTAINER = {"tcp_established"}
NAMES = sorted(path.stem for path in (ROOT / "e2e" / "targets").glob("*.cc")
               if path.stem not in NOT_IN_A_CONTAINER)

# Who sent a message or connected is told by pid, and of a process that is gone only its own pid namespace could
# tell: what a first restore brought back, a second one notes as lost.
ONCE = {"unix_connections", "unix_messages"}

# The container's first process; each target is in a folder of its own.
SUPERVISOR = """
for name in "$@"; do
  mkdir -p /share/$name
  (cd /share/$name; /targets/$name /share/$name </dev/null >out 2>err; echo $? >code) &
done
wait
"""


class Targets:
    def __init__(self, bed, pods, folder, names, **config):
        self.bed, self.pods, self.folder, self.names = bed, pods, folder, names
        self.config = config
        folder.chmod(0o777)
        self.round = 0
        self.pod = self.container = None
        self.run(bed.image("targets"), command=["/bin/sh", "-c", SUPERVISOR, "targets"], args=names)

    def run(self, image, **config):
        self.pod = self.pods(f"targets-{self.round}")
        self.container = self.bed.cri.run(self.pod, "targets", image, mounts=self.mounts(),
                                           **{**self.config, **config})

    def mounts(self):
        return [{"container_path": "/share", "host_path": str(self.folder)},
                {"container_path": "/targets", "host_path": str(TARGETS), "readonly": True}]

    def text(self, name, file):
        path = self.folder / name / file
        return path.read_text(errors="replace").strip() if path.exists() else ""

    def ended(self, name):
        return self.text(name, "code") != ""

    def ready(self):
        return all((self.folder / name / "ready").exists() or self.ended(name) for name in self.names)

    def move(self):
        """Through a checkpoint, into another pod."""
        archive = self.folder.with_name(self.folder.name + f"-{self.round}.tar")
        journey.checkpoint(self.bed.cri, self.container, archive)
        image = journey.push_image(archive, f"{self.bed.registry.address}/targets-{self.round}:1")
        archive.unlink()
        self.bed.cri.remove_pod(self.pod.id)
        self.round += 1
        self.run(image)
        for name in self.names:
            (self.folder / name / "restored").touch()

    def finish(self):
        """What was wrong, by name."""
        for name in self.names:
            (self.folder / name / "go").touch()
        until(lambda: all(map(self.ended, self.names)), what="the end of all targets")
        codes = {name: self.text(name, "code") for name in self.names}
        return {name: self.text(name, "err") or self.text(name, "out") or code
                for name, code in codes.items() if code not in ("0", "77")}


def targets(bed, pods, folder, names, **config):
    made = Targets(bed, pods, folder, names, **config)
    until(made.ready, what="all targets to be ready")
    return made


@pytest.mark.parametrize("times", [0, 1, 2])
def test_targets(bed, pods, place, times):
    made = targets(bed, pods, place, [name for name in NAMES if times < 2 or name not in ONCE])
    for _ in range(times):
        made.move()
    assert made.finish() == {}


def test_what_stands_for_a_dead_process_takes_no_number_of_a_thread(bed, pods, place):
    """Alone in its container the numbers of its tasks follow each other."""
    made = targets(bed, pods, place, ["dead_pidfd"])
    made.move()
    assert made.finish() == {}


@pytest.mark.parametrize("user", ["0", "1000"])
def test_rings_where_the_profile_allows_them(bed, pods, place, user):
    """The profiles of most runtimes forbid io_uring."""
    security = {"seccomp": {"profile_type": "Unconfined"}, "run_as_user": {"value": user}}
    made = targets(bed, pods, place, ["io_uring", "io_uring_registered"], security=security)
    assert not any(made.ended(name) for name in made.names), made.text("io_uring", "out")
    for _ in range(2):
        made.move()
    assert made.finish() == {}


def test_no_ring_is_made_where_the_profile_forbids_it(bed, pods, place):
    made = targets(bed, pods, place, ["io_uring"], security={"seccomp": {"profile_type": "Unconfined"}})
    profile = place.with_name("no-rings.json")
    profile.write_text(json.dumps({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["io_uring_setup"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}))
    made.config["security"] = {"seccomp": {"profile_type": "Localhost", "localhost_ref": str(profile)}}
    with pytest.raises(CriError, match="io_uring is not allowed here"):
        made.move()
