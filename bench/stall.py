"""The longest wait of a client of redis while redis is checkpointed."""

import contextlib
import random
import threading
import time

from bench.harness import Row
from bench.subject import Subject
from bench.trees import PROBLEMS, engines
from e2e.redis import Redis
from e2e.wait import until

RATE = 5000
PORT = 16379


class Client(threading.Thread):
    """Asks RATE times a second, for any of `keys` keys. A request waits from when it was due, not from when it
    could be sent: who is late because of an earlier answer has waited, too."""

    def __init__(self, redis, keys):
        super().__init__()
        self.redis, self.keys, self.end, self.error = redis, keys, False, None
        self.longest = self.slowest = 0.0  # from when it was due, and from when it was sent

    def run(self):
        due = time.monotonic()
        try:
            while not self.end:
                due += 1 / RATE
                early = due - time.monotonic()
                if early > 0:
                    time.sleep(early)
                sent = time.monotonic()
                self.redis.call("GET", f"key:{random.randrange(self.keys)}")
                answered = time.monotonic()
                self.longest = max(self.longest, answered - due)
                self.slowest = max(self.slowest, answered - sent)
        except (OSError, EOFError, ValueError) as error:
            self.error = error

    def take(self):
        """The longest waits since this was called last, in milliseconds: from when it was due, from when sent."""
        taken = self.longest * 1000, self.slowest * 1000
        self.longest = self.slowest = 0.0
        return taken

    def finish(self):
        self.end = True
        self.join()
        self.redis.close()
        if self.error:
            raise OSError(f"the client: {self.error}")


@contextlib.contextmanager
def populated(run, keys):
    """Redis with that many keys of 900 bytes."""
    with Subject(run.folder, ["redis-server", "--port", PORT, "--save", "", "--enable-debug-command", "yes"]) as subject:
        redis = until(lambda: Redis.connect("127.0.0.1", PORT), what="redis")
        redis.call("DEBUG", "POPULATE", keys, "key", 900)
        redis.close()
        yield subject


def one_stall(run, who, keys):
    """Milliseconds: the longest wait in a checkpoint, and in as much time without one."""
    with populated(run, keys) as subject:
        client = Client(Redis.connect("127.0.0.1", PORT), keys)
        client.start()
        try:
            time.sleep(1)
            quiet, _ = client.take()
            subject.dump(who)
            time.sleep(0.1)
            return client.take()[0], quiet
        finally:
            client.finish()


def stall(run):
    """the longest wait of a redis client at 5,000 requests a second, during a checkpoint"""
    keys = run.size(1_000_000, 10_000)
    samples = {}
    broken = set()
    for who in run.each(engines(run)):
        if who in broken:
            continue
        try:
            longest, quiet = one_stall(run, who, keys)
        except PROBLEMS as error:
            run.failed("stall", who, error)
            broken.add(who)
            continue
        samples.setdefault(who, []).append(longest)
        samples.setdefault("without a checkpoint", []).append(quiet)
    run.add(Row("stall", f"longest wait, {keys} keys of 900 bytes", samples, target=25))
