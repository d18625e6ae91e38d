"""Containers, over CRI: whole calls to stasisd with containerd, and to the peer's containerd with CRIU."""

import contextlib
import os
import tarfile
import time

from bench.harness import Row
from bench.subject import WORKLOAD
from e2e import journey, stats
from e2e.paths import PEERS
from e2e.testbed.cri import CriError
from e2e.testbed.images import Image
from e2e.testbed.testbed import Testbed
from e2e.wait import until

PROBLEMS = (CriError, OSError, TimeoutError, AssertionError, RuntimeError, journey.StasisError)
PIECE = 1 << 20


def milliseconds(call, *words, **more):
    start = time.monotonic()
    result = call(*words, **more)
    return (time.monotonic() - start) * 1000, result


def sequential_writer(path, size):
    """How long one writer takes for that many bytes, and to have them on the disk."""
    piece = os.urandom(PIECE)
    start = time.monotonic()
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // PIECE):
            file.write(piece)
        file.write(piece[:size % PIECE])
        os.fsync(file.fileno())
    took = (time.monotonic() - start) * 1000
    path.unlink()
    return took


@contextlib.contextmanager
def running(bed, cri, name, image, words):
    """A container of the workload in a pod of its own, once it is ready."""
    pod = cri.run_pod(name)
    try:
        container = cri.run(pod, "work", image, command=[str(WORKLOAD), "/tmp", *map(str, words)])
        log = bed.logs / name / "work.log"
        until(lambda: log.exists() and "ready" in log.read_text(), seconds=120, what="the workload")
        yield container
    finally:
        cri.remove_pod(pod.id)


def client_alone(cri):
    """What a call takes that does nothing: most of it is the start of the client."""
    return sorted(milliseconds(cri.call, "Version")[0] for _ in range(5))[2]


def checkpointed(bed, cri, container):
    """Frozen and whole call in milliseconds, and the archive."""
    archive = bed.folder / "bench.tar"
    archive.unlink(missing_ok=True)
    os.sync()
    idle = client_alone(cri)
    took, _ = milliseconds(journey.checkpoint, cri, container, archive)
    with tarfile.open(archive) as tar:
        frozen = stats.read(tar.extractfile("stats-dump").read())["frozen_us"] / 1000
    return frozen, max(took - idle, 0), archive


def workload_image(bed):
    return bed.registry.push(Image([str(WORKLOAD)], programs=[WORKLOAD]), "bench-workload")


@contextlib.contextmanager
def peer_runtime(run, bed):
    """The peer's CRI socket, or None."""
    if not run.peer or not PEERS.exists():
        yield None
        return
    from e2e.peers.runtime import PeerRuntime  # pylint: disable=import-outside-toplevel
    with PeerRuntime(bed) as peer:
        yield peer.cri


def measured(run, bed, item, name, words, peer_cri):
    """Frozen, whole call and writer samples; everybody in turn, on the same disk."""
    image = workload_image(bed)
    sockets = {"Stasis": bed.cri, **({"containerd with CRIU": peer_cri} if peer_cri else {})}
    frozen, whole = {}, {}
    for number, who in enumerate(run.each(list(sockets))):
        try:
            with running(bed, sockets[who], f"bench-{number}", image, words) as container:
                freeze, took, archive = checkpointed(bed, sockets[who], container)
        except PROBLEMS as error:
            run.failed(item, f"{name}, {who}", error)
            continue
        frozen.setdefault(who, []).append(freeze)
        whole.setdefault(who, []).append(took)
        if who == "Stasis":
            os.sync()
            whole.setdefault("one writer", []).append(
                sequential_writer(bed.folder / "written", archive.stat().st_size))
    return frozen, whole


def containers(run):
    """CheckpointContainer, archive durable, beside one sequential writer and containerd with CRIU"""
    item = "containers"
    with Testbed() as bed:
        with peer_runtime(run, bed) as peer_cri:
            mib = run.size(1024, 16)
            frozen, whole = measured(run, bed, item, f"{mib} MiB", [mib], peer_cri)
            run.add(Row(item, f"frozen, {mib} MiB", frozen, base="containerd with CRIU"))
            run.add(Row(item, f"whole call, {mib} MiB", whole, ratio=1.25, base="one writer"))
            run.add(Row(item, f"whole call, {mib} MiB, to the peer", whole, ratio=1 / 2.5,
                        base="containerd with CRIU"))
        frozen, whole = measured(run, bed, item, "10 MiB, 3 processes", [10, 0, 3], None)
        run.add(Row(item, "frozen, 10 MiB and 3 processes", frozen))
        run.add(Row(item, "whole call, 10 MiB and 3 processes", whole, target=40, base="one writer"))
        started(run, bed, item, "10 MiB and 3 processes", [10, 0, 3])
        started(run, bed, item, f"{mib} MiB", [mib])


def started(run, bed, item, name, words):
    """Create and start of a restored container, all loaded or lazily, and of the same one started cold."""
    image = workload_image(bed)
    with running(bed, bed.cri, "bench-saved", image, words) as container:
        archive = checkpointed(bed, bed.cri, container)[2]
    saved = journey.push_image(archive, f"{bed.registry.address}/bench-saved:{words[0]}")
    cold = {"command": [str(WORKLOAD), "/tmp", *map(str, words)]}
    samples = {}
    for number, who in enumerate(run.each(["Stasis", "Stasis, lazily", "cold start"])):
        pod = bed.cri.run_pod(f"bench-start-{number}")
        pod.config["annotations"] = {"stasis.dev/lazy-pages": str(who == "Stasis, lazily").lower()}
        try:
            restored = who != "cold start"
            bed.cri.pull(saved)
            took, _ = milliseconds(bed.cri.run, pod, "work", saved if restored else image, **({} if restored else cold))
            samples.setdefault(who, []).append(took)
        finally:
            bed.cri.remove_pod(pod.id)
    run.add(Row(item, f"create and start, {name}", samples, base="cold start"))
