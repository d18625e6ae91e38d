"""Containers through a checkpoint over CRI, an image in a registry, and a restore over CRI."""

import tarfile

import pytest

from e2e import journey
from e2e.redis import Redis
from e2e.testbed.cri import RESTRICTED, CriError
from e2e.wait import until
from e2e.writers import Writers

COUNTING = 'i=0; while :; do echo "$i"; i=$((i + 1)); sleep 0.01; done'


def lines(log):
    """The container's own lines of a CRI log (time, stream, tag, text)."""
    return [line.split(" ", 3)[3] for line in log.splitlines()]


def counts(bed, pod, name="count"):
    return [int(line) for line in lines(bed.cri.log(pod, name))]


@pytest.fixture
def counting(bed, pods):
    """A pod and a container that prints one number after the other."""
    pod = pods("counting")
    container = bed.cri.run(pod, "count", bed.image("busybox"), command=["sh", "-c", COUNTING])
    until(lambda: (bed.logs / "counting" / "count.log").exists() and len(counts(bed, pod)) > 10)
    return pod, container


def goes_on(bed, pod):
    """The container counts on, and not one number is missing or double."""
    before = len(counts(bed, pod))
    until(lambda: len(counts(bed, pod)) > before + 10, what="more numbers")
    numbers = counts(bed, pod)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.parametrize("security", [None, RESTRICTED], ids=["default", "restricted"])
def test_redis_goes_on_in_another_pod(bed, pods, folder, security):
    first = pods("redis-first")
    container = bed.cri.run(first, "redis", bed.image("redis"), security=security)
    redis = until(lambda: Redis.connect(first.ip), what="redis")
    journey.fill(redis)
    run_id = redis.info()["run_id"]
    redis.close()
    with Writers(first.ip, 2) as writers:
        until(lambda: min(writers.written) > 50)
        journey.checkpoint(bed.cri, container, folder / "redis.tar")
    assert not writers.errors
    reference = f"{bed.registry.address}/redis-{'restricted' if security else 'default'}:1"
    image = journey.push_image(folder / "redis.tar", reference)
    bed.cri.remove_pod(first.id)

    second = pods("redis-second")
    restored = bed.cri.run(second, "redis", image, security=security)
    redis = until(lambda: Redis.connect(second.ip), what="the restored redis")
    assert redis.info()["run_id"] == run_id
    assert journey.missing_keys(redis) == 0
    status = bed.cri.exec(restored, "cat", "/proc/1/status").out
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split()[0] == "1000"
    if security:
        assert int(facts["CapPrm"], 16) == int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    assert bed.cri.stop(restored).get("exit_code", 0) == 0


def test_the_log_goes_on_where_it_was(bed, pods, folder, counting):
    pod, container = counting
    journey.checkpoint(bed.cri, container, folder / "count.tar")
    goes_on(bed, pod)
    image = journey.push_image(folder / "count.tar", f"{bed.registry.address}/counting:1")
    again = pods("counting-again")
    bed.cri.run(again, "count", image)
    goes_on(bed, again)
    assert counts(bed, again)[0] == 0


def test_a_restored_container_is_shown_as_what_was_asked_for(bed, pods, folder, counting):
    _, container = counting
    journey.checkpoint(bed.cri, container, folder / "count.tar")
    image = journey.push_image(folder / "count.tar", f"{bed.registry.address}/shown:1")
    pod = pods("shown")
    restored = bed.cri.run(pod, "count", image)
    assert bed.cri.status(restored)["image"]["image"] == image
    listed = bed.cri.call("ListContainers", filter={"id": restored})["containers"]
    assert [one["image"]["image"] for one in listed] == [image]
    bed.stop_service("stasisd")
    bed.start_shim()
    assert bed.cri.status(restored)["image"]["image"] == image
    goes_on(bed, pod)


def test_the_archive_has_what_the_runtimes_write(bed, folder, counting):
    _, container = counting
    archive = folder / "count.tar"
    journey.checkpoint(bed.cri, container, archive)
    assert archive.stat().st_mode & 0o777 == 0o600
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
    assert {"config.dump", "spec.dump", "stats-dump", "checkpoint/inventory.img",
            "checkpoint/pstree.img", "checkpoint/core-1.img"} <= names
    assert [path.name for path in folder.iterdir()] == ["count.tar"]


@pytest.mark.parametrize("location, code", [
    ("relative.tar", "InvalidArgument"),
    ("/no/such/folder/archive.tar", "NotFound"),
    ("/proc/archive.tar", None),
], ids=["relative", "missing folder", "not writable"])
def test_a_location_that_cannot_be(bed, counting, location, code):
    pod, container = counting
    with pytest.raises(CriError) as refused:
        journey.checkpoint(bed.cri, container, location)
    assert code is None or refused.value.code == code
    goes_on(bed, pod)


def test_an_archive_is_not_overwritten(bed, folder, counting):
    pod, container = counting
    archive = folder / "archive.tar"
    archive.write_text("mine")
    with pytest.raises(CriError) as refused:
        journey.checkpoint(bed.cri, container, archive)
    assert refused.value.code == "AlreadyExists"
    assert archive.read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == ["archive.tar"]
    goes_on(bed, pod)


def test_only_running_containers_are_checkpointed(bed, folder, counting):
    _, container = counting
    with pytest.raises(CriError) as refused:
        journey.checkpoint(bed.cri, "0" * 64, folder / "none.tar")
    assert refused.value.code == "NotFound"
    bed.cri.stop(container, timeout=0)
    with pytest.raises(CriError) as refused:
        journey.checkpoint(bed.cri, container, folder / "none.tar")
    assert refused.value.code == "FailedPrecondition"
    assert not list(folder.iterdir())


def test_an_altered_archive_is_not_restored(bed, pods, folder, counting):
    _, container = counting
    archive = folder / "count.tar"
    journey.checkpoint(bed.cri, container, archive)
    journey.stasis("verify", archive)
    with tarfile.open(archive) as tar:
        core = tar.getmember("checkpoint/core-1.img")
    with open(archive, "r+b") as file:
        file.seek(core.offset_data + 16)
        file.write(b"\xff" * 32)
    with pytest.raises(journey.StasisError, match="core-1.img"):
        journey.stasis("verify", archive)
