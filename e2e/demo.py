"""The main job, shown on a real container: ./dev demo.

A redis server under load is checkpointed, its archive becomes an image in a registry, and a new pod goes
on from there. All that a user does is done by `crictl` on the socket of stasisd, and by `stasis`; each
command is shown as it runs. Every step checks what it claims, and the first that does not hold ends the
demo.
"""

import contextlib
import sys
import tarfile
import time

from e2e import journey, stats
from e2e.crictl import Crictl, CrictlError
from e2e.redis import Redis
from e2e.testbed.cri import NAMESPACES, CriError
from e2e.testbed.testbed import Testbed
from e2e.wait import until
from e2e.writers import Writers


ID_SHOWN = 13  # characters of an id that `crictl ps` shows, and that users give back to it


class Broken(Exception):
    """Something that the demo claims does not hold."""


def command(line):
    print(f"     $ {line}", flush=True)


def megabytes(size):
    return f"{size / 1e6:.1f} MB"


class Demo:
    def __init__(self, bed):
        self.bed = bed
        print("0/6  crictl is told where stasisd listens")
        self.crictl = Crictl(bed.cri.endpoint, bed.folder, command)
        self.archive = bed.folder / "checkpoint.tar"
        self.times = {}
        self.proven = []
        self.written = []  # what each client had written when the checkpoint began

    @staticmethod
    def step(number, title):
        print(f"\n{number}/6  {title}", flush=True)

    @contextlib.contextmanager
    def timed(self, name=None):
        start = time.monotonic()
        yield
        if name:
            self.times[name] = time.monotonic() - start

    def check(self, holds, claim):
        if not holds:
            raise Broken(f"this does not hold: {claim}")
        print(f"     ✓ {claim}", flush=True)
        self.proven.append(claim)

    def run(self):
        print(f"     {self.crictl('--version')}")
        self.step(1, "run a redis container and write 10,000 keys")
        pod, container = self.run_container("redis", self.bed.image("redis"))
        address = self.address(pod)
        redis = until(lambda: Redis.connect(address), what="redis")
        journey.fill(redis)
        self.check(redis.call("DBSIZE") == journey.KEYS, "10,000 keys are written")
        self.step(2, "checkpoint it while four clients go on writing")
        self.checkpoint(container, address)
        self.step(3, "inspect the archive")
        print(self.stasis("inspect", self.archive).rstrip())
        self.step(4, "make an OCI image of it and push it")
        image = f"{self.bed.registry.address}/redis-checkpoint:1"
        with self.timed("image made and pushed"):
            self.stasis("image", self.archive, "--push", image)
        self.step(5, "remove the pod, and run the image in a new one")
        run_id = redis.info()["run_id"]
        redis.close()
        self.remove(pod)
        self.check(not self.crictl.ask("ps", "-a")["containers"], "the first container is gone")
        pod, container = self.run_container("redis-again", image, timed="restore (crictl start)")
        self.check(self.status(container)["image"]["image"] == image,
                   "the new container's status names the checkpoint image")
        self.step(6, "see that it is the same process, with all that it knew")
        self.verify(pod, container, run_id)
        self.show_results()

    def run_container(self, name, image, timed=None):
        pod_file = self.crictl.write(f"{name}-pod.json", self.bed.cri.pod_config(name))
        container_file = self.crictl.write(f"{name}.json", {
            "metadata": {"name": "redis"}, "image": {"image": image}, "log_path": "redis.log",
            "linux": {"security_context": NAMESPACES}})
        pod = self.crictl("runp", pod_file)[:ID_SHOWN]
        self.crictl("pull", image)
        container = self.crictl("create", pod, container_file, pod_file)[:ID_SHOWN]
        with self.timed(timed):
            self.crictl("start", container)
        return pod, container

    def remove(self, pod):
        self.crictl("stopp", pod)
        self.crictl("rmp", pod)

    def address(self, pod):
        return self.crictl.ask("inspectp", pod)["status"]["network"]["ip"]

    def status(self, container):
        return self.crictl.ask("inspect", container)["status"]

    def stasis(self, *words):
        command(f"stasis {' '.join(map(str, words))}")
        return journey.stasis(*words)

    def checkpoint(self, container, address):
        with Writers(address) as writers:
            until(lambda: min(writers.written) > 100, what="the writers")
            self.written = list(writers.written)
            with self.timed("checkpoint (crictl checkpoint)"):
                self.crictl("checkpoint", f"--export={self.archive}", container)
            until(lambda count=sum(writers.written): sum(writers.written) > count + 400,
                  what="writes after the checkpoint")
        self.check(not writers.errors, f"no client saw an error meanwhile {'; '.join(writers.errors)}".rstrip())
        self.check(self.status(container)["state"] == "CONTAINER_RUNNING",
                   "the container runs on after its checkpoint")
        self.times["longest wait of a client"] = writers.longest_stall

    def verify(self, pod, container, run_id):
        address = self.address(pod)
        redis = until(lambda: Redis.connect(address), what="the restored redis")
        info = redis.info()
        self.check(journey.missing_keys(redis) == 0, "all 10,000 keys are there, with their values")
        self.check(info["run_id"] == run_id, "it is the process that was checkpointed, not a new one")
        self.check(info["process_id"] == "1", "it has the pid that it had in its container")
        counters = [int(redis.call("GET", f"counter:{i}")) for i in range(4)]
        self.check(all(there >= before for there, before in zip(counters, self.written, strict=True)),
                   "every write that was answered before the checkpoint is there, too")
        redis.close()
        self.check(self.crictl("exec", container, "redis-cli", "ping") == "PONG", "crictl exec works in it")
        log = self.crictl("logs", container)
        self.check("Ready to accept connections" in log, "the log of before is there, with crictl logs")
        self.crictl("stop", "--timeout=10", container)
        self.check(self.status(container)["exitCode"] == 0, "crictl stop ends it in good order")
        more = self.crictl("logs", container)[len(log):]
        self.check("Received SIGTERM" in more, "the log went on where it was")
        self.remove(pod)

    def show_results(self):
        with tarfile.open(self.archive) as archive:
            dump = stats.read(archive.extractfile("stats-dump").read())
        rows = [(name, f"{seconds * 1000:.0f} ms") for name, seconds in self.times.items()]
        rows.insert(0, ("frozen", f"{dump['frozen_us'] / 1000:.1f} ms"))
        rows.append(("archive", megabytes(self.archive.stat().st_size)))
        print("\nproven:")
        for claim in self.proven:
            print(f"  ✓ {claim}")
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
    except (Broken, CriError, CrictlError, journey.StasisError, TimeoutError, RuntimeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
