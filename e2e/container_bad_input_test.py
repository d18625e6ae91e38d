"""CheckpointContainer and CreateContainer, given what cannot be or ended amid their work: an error with
the right code, the container goes on, and nothing half-made is left."""

import io
import json
import os
import shutil
import signal
import tarfile
import threading
import time
from pathlib import Path

import pytest

from e2e import journey
from e2e.container_checkpoint_test import counting, goes_on  # noqa: F401 (a fixture)
from e2e.testbed.cri import CriError
from e2e.wait import until


@pytest.mark.parametrize("options, code", [("size=64k", "ResourceExhausted"), ("ro", "PermissionDenied")],
                         ids=["full", "read-only"])
def test_a_disk_that_takes_nothing(bed, counting, mounted, options, code):
    pod, container = counting
    place = mounted(options)
    with pytest.raises(CriError) as refused:
        journey.checkpoint(bed.cri, container, place / "a.tar")
    assert refused.value.code == code
    assert not list(place.iterdir())
    goes_on(bed, pod)


class Amid:
    """A CheckpointContainer that stasisd is stopped in while the container stands still."""

    def __init__(self, bed, container, location, deadline=60, **request):
        # Enough to write that there is a middle.
        bed.cri.exec(container, "dd", "if=/dev/urandom", "of=/large", "bs=1M", "count=300")
        self.service = bed.services["stasisd"]
        self.error = None
        status = Path(f"/proc/{bed.cri.pid(container)}/status")

        def call():
            try:
                bed.cri.call("CheckpointContainer", deadline=deadline, container_id=container,
                             location=str(location), **request)
            except CriError as error:
                self.error = error

        self.client = threading.Thread(target=call)
        self.client.start()
        until(lambda: "TracerPid:\t0\n" not in status.read_text(), every=0)
        time.sleep(0.05)
        self.service.send_signal(signal.SIGSTOP)
        assert "TracerPid:\t0\n" not in status.read_text()

    def end(self, how=signal.SIGCONT):
        self.service.send_signal(how)
        self.client.join(60)
        return self.error


def test_a_timeout_ends_it(bed, folder, counting):
    pod, container = counting
    amid = Amid(bed, container, folder / "a.tar", timeout=2)
    time.sleep(2)
    assert amid.end().code == "DeadlineExceeded"
    goes_on(bed, pod)
    assert not list(folder.iterdir())


def test_a_client_that_goes_ends_it(bed, folder, counting):
    pod, container = counting
    amid = Amid(bed, container, folder / "a.tar", deadline=2)
    amid.client.join(60)
    assert amid.end().code == "DeadlineExceeded"
    goes_on(bed, pod)
    assert not list(folder.iterdir())


def test_stasisd_killed_amid_leaves_all_as_it_was(bed, folder, counting):
    pod, container = counting
    amid = Amid(bed, container, folder / "a.tar")
    bed.stop_service("stasisd", signal.SIGKILL)
    amid.client.join(60)
    assert amid.error.code == "Unavailable"
    assert not list(folder.iterdir())
    bed.start_shim()
    goes_on(bed, pod)
    journey.checkpoint(bed.cri, container, folder / "a.tar")
    journey.stasis("verify", folder / "a.tar")


def flipped(archive, member):
    with tarfile.open(archive) as tar:
        at = tar.getmember(member).offset_data + 100
    with open(archive, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("spoil, code", [
    (lambda archive: os.truncate(archive, archive.stat().st_size // 2), "DataLoss"),
    (lambda archive: os.truncate(archive, 0), "DataLoss"),
    (lambda archive: archive.write_text("no archive at all" * 100), "InvalidArgument"),
    (lambda archive: flipped(archive, "checkpoint/pages-1.img"), "DataLoss"),
], ids=["half", "empty", "text", "altered"])
def test_no_container_is_made_of_a_spoilt_archive(bed, pods, folder, counting, spoil, code):
    _, container = counting
    archive = folder / "a.tar"
    journey.checkpoint(bed.cri, container, archive)
    spoil(archive)
    pod = pods("spoilt")
    with pytest.raises(CriError) as refused:
        bed.cri.call("CreateContainer", pod_sandbox_id=pod.id, sandbox_config=pod.config, config={
            "metadata": {"name": "count"}, "image": {"image": str(archive)}, "log_path": "count.log"})
    assert refused.value.code == code and str(archive) in refused.value.message
    made = bed.runtime.call("ListContainers", filter={"pod_sandbox_id": pod.id})
    assert not made.get("containers")


def test_no_image_is_made_of_an_altered_archive(bed, folder, counting):
    _, container = counting
    archive = folder / "a.tar"
    journey.checkpoint(bed.cri, container, archive)
    shutil.copy(archive, folder / "good.tar")
    flipped(archive, "checkpoint/pages-1.img")
    with pytest.raises(journey.StasisError, match="pages-1.img: its content was altered"):
        journey.push_image(archive, f"{bed.registry.address}/altered:1")
    with pytest.raises(CriError):
        bed.cri.pull(f"{bed.registry.address}/altered:1")
    journey.push_image(folder / "good.tar", f"{bed.registry.address}/altered:1")


def repacked(archive, changes):
    """A copy without hashes, as other runtimes write archives, in which members of these names are what
    `changes` makes of them."""
    copy = archive.with_name("repacked.tar")
    with tarfile.open(archive) as source, tarfile.open(copy, "w") as target:
        for member in source:
            content = source.extractfile(member).read() if member.isfile() else b""
            if member.name == "stasis-manifest.json":
                continue
            if member.name in changes:
                content = changes[member.name](content)
                member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    return copy


def test_an_image_that_cannot_be_restored_fails_the_container_and_says_why(bed, pods, folder, counting):
    _, container = counting
    journey.checkpoint(bed.cri, container, folder / "a.tar")
    archive = repacked(folder / "a.tar", {"checkpoint/core-1.img": lambda core: core[:len(core) // 2]})
    image = journey.push_image(archive, f"{bed.registry.address}/broken:1")
    pod = pods("broken")
    made = bed.cri.create(pod, "count", image)
    with pytest.raises(CriError) as refused:
        bed.cri.call("StartContainer", container_id=made)
    assert refused.value.code == "DataLoss" and "core-1.img" in refused.value.message
    status = until(lambda: (now := bed.cri.status(made))["state"] == "CONTAINER_EXITED" and now)
    assert status["reason"] == "RestoreFailed" and "core-1.img" in status["message"]
    assert bed.cri.log(pod, "count").splitlines()[-1].endswith(status["message"])


def test_a_base_image_that_is_nowhere_is_named(bed, pods, folder, counting):
    _, container = counting
    journey.checkpoint(bed.cri, container, folder / "a.tar")
    missing = f"{bed.registry.address}/no-such-base:1"
    archive = repacked(folder / "a.tar", {"config.dump": lambda _: json.dumps(
        {"rootfsImage": missing, "rootfsImageRef": missing, "rootfsImageName": missing}).encode()})
    image = journey.push_image(archive, f"{bed.registry.address}/without-base:1")
    with pytest.raises(CriError) as refused:
        bed.cri.create(pods("without-base"), "count", image)
    assert refused.value.code == "NotFound"
    assert missing in refused.value.message and "pull it to the node" in refused.value.message
