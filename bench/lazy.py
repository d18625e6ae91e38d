"""A restore whose memory comes while the program runs: how soon it runs, and how long its users wait meanwhile."""

import time

from bench.harness import Row
from bench.stall import PORT, Client, populated
from bench.trees import PROBLEMS
from e2e.host import page_servers
from e2e.redis import Redis
from e2e.wait import until

KEYS_A_GIB = 1_000_000  # of 900 bytes


def one(run, keys, samples):
    with populated(run, keys) as subject:
        subject.dump("Stasis", "--kill")
        start = time.monotonic()
        samples["runs"].append(subject.restore("Stasis", "--lazy-pages"))
        client = Client(until(lambda: Redis.connect("127.0.0.1", PORT), what="redis"), keys)
        client.start()
        try:
            until(lambda: not page_servers(), seconds=120, what="all memory", every=0.01)
            samples["loaded"].append((time.monotonic() - start) * 1000)
            for pause, due, sent in ((0, "wait", "answer"), (1, "quiet", "quiet answer")):
                time.sleep(pause)
                longest, slowest = client.take()
                samples[due].append(longest)
                samples[sent].append(slowest)
        finally:
            client.finish()


def lazy(run):
    """a lazy restore until it runs, its redis client's longest wait meanwhile, and until all is there"""
    for gib in run.size([1, 4], [0.01]):
        keys, title = int(gib * KEYS_A_GIB), f"{gib} GiB of redis"
        samples = {name: [] for name in ("runs", "loaded", "wait", "answer", "quiet", "quiet answer")}
        try:
            for _ in range(run.repetitions):
                one(run, keys, samples)
        except PROBLEMS as error:
            run.failed("lazy", title, error)
        run.add(Row("lazy", f"runs, {title}", {"Stasis": samples["runs"]}, target=50))
        run.add(Row("lazy", f"longest wait for an answer, {title}",
                    {"Stasis": samples["answer"], "once loaded": samples["quiet answer"]}, target=20, base="once loaded"))
        run.add(Row("lazy", f"longest wait from when it was due, 5,000 a second, {title}",
                    {"Stasis": samples["wait"], "once loaded": samples["quiet"]}, base="once loaded"))
        run.add(Row("lazy", f"all loaded, {title}", {"Stasis": samples["loaded"]}))
