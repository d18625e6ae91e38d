"""The longest wait of a client of redis while redis is checkpointed."""

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
    """Asks RATE times a second. A request waits from when it was due, not from when it could be sent:
    who is late because of an earlier answer has waited, too."""

    def __init__(self, redis):
        super().__init__()
        self.redis, self.longest, self.answered, self.end, self.error = redis, 0.0, 0, False, None

    def run(self):
        due = time.monotonic()
        try:
            while not self.end:
                due += 1 / RATE
                early = due - time.monotonic()
                if early > 0:
                    time.sleep(early)
                self.redis.call("GET", "key:1")
                self.longest = max(self.longest, time.monotonic() - due)
                self.answered += 1
        except (OSError, EOFError, ValueError) as error:
            self.error = error


def one_stall(run, who, keys):
    """Milliseconds: the longest wait in a checkpoint, and in as much time without one."""
    command = ["redis-server", "--port", PORT, "--save", "", "--enable-debug-command", "yes"]
    with Subject(run.folder, command) as subject:
        redis = until(lambda: Redis.connect("127.0.0.1", PORT), what="redis")
        redis.call("DEBUG", "POPULATE", keys, "key", 900)
        client = Client(redis)
        client.start()
        try:
            time.sleep(1)
            quiet, client.longest = client.longest, 0.0
            subject.dump(who)
            time.sleep(0.1)
        finally:
            client.end = True
            client.join()
            redis.close()
        if client.error:
            raise OSError(f"the client: {client.error}")
        return client.longest * 1000, quiet * 1000


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
