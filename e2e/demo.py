"""The main job, shown on a real container: ./dev demo.

A redis server under load is checkpointed, its archive becomes an image in a registry, and a new pod goes
on from there. Every step checks what it claims, and the first that does not hold ends the demo.
"""

import contextlib
import sys
import tarfile
import time

from e2e import journey, stats
from e2e.redis import Redis
from e2e.testbed.cri import CriError
from e2e.testbed.testbed import Testbed
from e2e.wait import until
from e2e.writers import Writers


class Broken(Exception):
    """Something that the demo claims does not hold."""


def check(holds, claim):
    if not holds:
        raise Broken(f"this does not hold: {claim}")
    print(f"     ✓ {claim}")


def megabytes(size):
    return f"{size / 1e6:.1f} MB"


class Demo:
    def __init__(self, bed):
        self.bed, self.cri = bed, bed.cri
        self.archive = bed.folder / "checkpoint.tar"
        self.times = {}

    @contextlib.contextmanager
    def step(self, number, title, timed=None):
        print(f"{number}/6  {title}", flush=True)
        start = time.monotonic()
        yield
        if timed:
            self.times[timed] = time.monotonic() - start

    def run(self):
        with self.step(1, "run a redis container and write 10,000 keys"):
            pod, container, redis = self.start_redis()
        with self.step(2, "checkpoint it over CRI while four clients go on writing"):
            self.checkpoint(pod, container)
        with self.step(3, "inspect the archive"):
            print(journey.stasis("inspect", self.archive).rstrip())
        with self.step(4, "make an OCI image of it and push it", timed="image made and pushed"):
            image = journey.push_image(self.archive, f"{self.bed.registry.address}/redis-checkpoint:1")
            print(f"     {image}")
        with self.step(5, "remove the pod, and run the image in a new one"):
            run_id = redis.info()["run_id"]
            redis.close()
            self.cri.remove_pod(pod.id)
            pod, container = self.restore(image)
        with self.step(6, "see that it is the same process, with all that it knew"):
            self.verify(pod, container, run_id)
        self.show_times()

    def start_redis(self):
        pod = self.cri.run_pod("redis")
        container = self.cri.run(pod, "redis", self.bed.image("redis"))
        redis = until(lambda: Redis.connect(pod.ip), what="redis")
        journey.fill(redis)
        check(redis.call("DBSIZE") == journey.KEYS, "10,000 keys are written")
        return pod, container, redis

    def checkpoint(self, pod, container):
        with Writers(pod.ip) as writers:
            until(lambda: min(writers.written) > 100, what="the writers")
            start = time.monotonic()
            journey.checkpoint(self.cri, container, self.archive)
            self.times["checkpoint, as the caller sees it"] = time.monotonic() - start
            until(lambda count=sum(writers.written): sum(writers.written) > count + 400,
                  what="writes after the checkpoint")
        check(not writers.errors, f"no client saw an error {'; '.join(writers.errors)}".rstrip())
        check(self.cri.status(container)["state"] == "CONTAINER_RUNNING", "the container runs on")
        self.times["longest wait of a client"] = writers.longest_stall

    def restore(self, image):
        pod = self.cri.run_pod("redis-again")
        container = self.cri.create(pod, "redis", image)
        start = time.monotonic()
        self.cri.call("StartContainer", container_id=container)
        self.times["restore (StartContainer)"] = time.monotonic() - start
        check(self.cri.status(container)["image"]["image"] == image,
              "the status names the checkpoint image")
        return pod, container

    def verify(self, pod, container, run_id):
        redis = until(lambda: Redis.connect(pod.ip), what="the restored redis")
        info = redis.info()
        check(journey.missing_keys(redis) == 0, "all 10,000 keys are there, with their values")
        check(info["run_id"] == run_id, "it is the process that was checkpointed, not a new one")
        check(info["process_id"] == "1", "it has the pid that it had in its container")
        counters = [int(redis.call("GET", f"counter:{i}")) for i in range(4)]
        check(min(counters) > 100, "so are the writes that came during the checkpoint")
        redis.close()
        check(self.cri.exec(container, "redis-cli", "ping").out == "PONG\n", "exec works")
        log = self.cri.log(pod, "redis")
        check("Ready to accept connections" in log, "the log of before is there")
        status = self.cri.stop(container)
        check(status.get("exit_code", 0) == 0, "stop ends it in good order")
        check("Received SIGTERM" in self.cri.log(pod, "redis")[len(log):], "and the log went on")
        self.cri.remove_pod(pod.id)

    def show_times(self):
        with tarfile.open(self.archive) as archive:
            dump = stats.read(archive.extractfile("stats-dump").read())
        rows = [(name, f"{seconds * 1000:.0f} ms") for name, seconds in self.times.items()]
        rows.insert(0, ("frozen", f"{dump['frozen_us'] / 1000:.1f} ms"))
        rows.append(("archive", megabytes(self.archive.stat().st_size)))
        print()
        for name, value in rows:
            print(f"  {name:36}{value:>12}")


def main():
    try:
        with Testbed() as bed:
            try:
                Demo(bed).run()
            except Exception:
                print(f"stasisd said last:\n{bed.service_log('stasisd')}", file=sys.stderr)
                raise
    except (Broken, CriError, journey.StasisError, TimeoutError, RuntimeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
