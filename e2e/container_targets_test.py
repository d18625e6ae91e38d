"""The target programs in a container, all at once: plain, through a checkpoint and a restore in another pod,
and twice through it."""


import pytest

from e2e import journey
from e2e.paths import ROOT, TARGETS
from e2e.wait import until

NAMES = sorted(path.stem for path in (ROOT / "e2e" / "targets").glob("*.cc"))

# Those that need rights which the containers of a cluster do not have, and say so in a plain run.
NOT_IN_A_CONTAINER = set()

# The container's first process; each target is in a folder of its own.
SUPERVISOR = """
for name in "$@"; do
  mkdir -p /share/$name
  (cd /share/$name; /targets/$name /share/$name </dev/null >out 2>err; echo $? >code) &
done
wait
"""


class Targets:
    def __init__(self, bed, pods, folder, names):
        self.bed, self.pods, self.folder, self.names = bed, pods, folder, names
        folder.chmod(0o777)
        self.round = 0
        self.pod = self.container = None
        self.run(bed.image("targets"), command=["/bin/sh", "-c", SUPERVISOR, "targets"], args=names)

    def run(self, image, **config):
        self.pod = self.pods(f"targets-{self.round}")
        mounts = [{"container_path": "/share", "host_path": str(self.folder)},
                  {"container_path": "/targets", "host_path": str(TARGETS), "readonly": True}]
        self.container = self.bed.cri.run(self.pod, "targets", image, mounts=mounts, **config)

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
                for name, code in codes.items() if code != "0"}


def targets(bed, pods, folder, names):
    made = Targets(bed, pods, folder, names)
    until(made.ready, what="all targets to be ready")
    return made


@pytest.fixture(scope="module")
def able():
    return []


def test_plain(bed, pods, place, able):
    wrong = targets(bed, pods, place, NAMES).finish()
    assert set(wrong) == NOT_IN_A_CONTAINER, wrong
    able += sorted(set(NAMES) - set(wrong))


@pytest.mark.parametrize("times", [1, 2])
def test_through_a_checkpoint(bed, pods, place, able, times):
    names = able or sorted(set(NAMES) - NOT_IN_A_CONTAINER)
    made = targets(bed, pods, place, names)
    for _ in range(times):
        made.move()
    assert made.finish() == {}
