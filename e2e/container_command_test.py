"""`stasis checkpoint --container`: what CheckpointContainer does, from the command line."""

import re
import signal
import tarfile
from pathlib import Path

import pytest

from e2e import journey
from e2e.container_checkpoint_test import counting, counts, goes_on  # noqa: F401 (a fixture)
from e2e.wait import until


@pytest.fixture(params=["stasisd", "containerd"])
def endpoint(bed, request):
    return (bed.cri if request.param == "stasisd" else bed.runtime).endpoint


def checkpoint(endpoint, container, *words):
    return journey.stasis("checkpoint", "--container", container, "--runtime-endpoint", endpoint, *words)


def names(archive):
    """Of its members; the container's second process, a sleep(1), is another each time."""
    with tarfile.open(archive) as tar:
        return {re.sub(r"-\d+\.img", "-N.img", name) for name in tar.getnames()}


def config_dump(archive):
    return journey.member(archive, "config.dump")


def test_the_archive_is_the_one_of_the_call(bed, pods, folder, counting, endpoint):
    pod, container = counting
    journey.checkpoint(bed.cri, container, folder / "call.tar")
    said = checkpoint(endpoint, container[:13], "--output", folder / "command.tar")
    assert said.startswith("checkpointed ")
    goes_on(bed, pod)
    assert names(folder / "command.tar") == names(folder / "call.tar")
    image = journey.push_image(folder / "command.tar", f"{bed.registry.address}/command:1")
    again = pods("command-again")
    bed.cri.run(again, "count", image)
    goes_on(bed, again)
    assert counts(bed, again)[0] == 0


def test_a_restored_containers_archive_names_its_base_image(bed, pods, folder, counting, endpoint):
    _, container = counting
    checkpoint(endpoint, container, "--output", folder / "first.tar")
    image = journey.push_image(folder / "first.tar", f"{bed.registry.address}/twice:1")
    again = pods("restored")
    restored = bed.cri.run(again, "count", image)
    checkpoint(endpoint, restored, "--output", folder / "second.tar")
    first, second = config_dump(folder / "first.tar"), config_dump(folder / "second.tar")
    assert second["rootfsImageRef"] == first["rootfsImageRef"]
    assert second["restored"] and not first.get("restored")
    goes_on(bed, again)


def test_images_alone_go_into_a_folder(bed, folder, counting, endpoint):
    pod, container = counting
    checkpoint(endpoint, container, "--images-dir", folder)
    assert (folder / "inventory.img").exists() and not (folder / "config.dump").exists()
    assert "sh -c" in journey.stasis("inspect", folder)
    goes_on(bed, pod)


def test_a_container_can_be_ended_with_its_checkpoint(bed, folder, counting, endpoint):
    _, container = counting
    checkpoint(endpoint, container, "--output", folder / "a.tar", "--kill")
    status = until(lambda: (now := bed.cri.status(container))["state"] == "CONTAINER_EXITED" and now)
    assert status["exit_code"] == 128 + signal.SIGKILL
    journey.stasis("verify", folder / "a.tar")


def test_a_container_can_be_left_stopped(bed, folder, counting, endpoint):
    pod, container = counting
    checkpoint(endpoint, container, "--output", folder / "a.tar", "--leave-stopped")
    status = Path(f"/proc/{bed.cri.pid(container)}/status").read_text()
    assert "State:\tT" in status
    bed.cri.exec(container, "sh", "-c", "kill -CONT -1; kill -CONT 1")
    goes_on(bed, pod)


def test_what_cannot_be_checkpointed_is_said(bed, folder, counting, endpoint):
    _, container = counting
    with pytest.raises(journey.StasisError, match="not found"):
        checkpoint(endpoint, "0" * 64, "--output", folder / "a.tar")
    bed.cri.stop(container, timeout=0)
    with pytest.raises(journey.StasisError, match="has exited; only a running container"):
        checkpoint(endpoint, container, "--output", folder / "a.tar")
    with pytest.raises(journey.StasisError, match="nobody answers at unix:///no/such.sock"):
        checkpoint("unix:///no/such.sock", container, "--output", folder / "a.tar")
    assert not list(folder.iterdir())


def test_a_check_disturbs_nobody(bed, counting, endpoint):
    pod, container = counting
    said = journey.stasis("check", "--container", container[:13], "--runtime-endpoint", endpoint)
    assert said.endswith("yes  it can be checkpointed\n")
    goes_on(bed, pod)


def test_a_compressed_archive_becomes_an_image_that_is_restored(bed, pods, folder, counting):
    pod, container = counting
    archive = folder / "compressed.tar"
    said = checkpoint(bed.cri.endpoint, container, "--output", archive, "--compress", "zstd:1")
    assert "compressed " in said
    journey.stasis("verify", archive)
    goes_on(bed, pod)
    image = journey.push_image(archive, f"{bed.registry.address}/compressed:1")
    again = pods("compressed-again")
    bed.cri.run(again, "count", image)
    goes_on(bed, again)
    assert counts(bed, again)[0] == 0
