"""Clients that write to a redis all the time, and what they felt of it."""

import threading
import time

from e2e.redis import Redis


class Writers:
    """Some connections that each increment a counter of their own until they are told to end."""

    def __init__(self, host, count=4):
        self.host = host
        self.ending = threading.Event()
        self.written = [0] * count
        self.longest = [0.0] * count
        self.errors = []
        self.threads = [threading.Thread(target=self._write, args=[index]) for index in range(count)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        for thread in self.threads:
            thread.join()

    @property
    def longest_stall(self):
        """Seconds that the slowest answer took."""
        return max(self.longest)

    def _write(self, index):
        try:
            redis = Redis.connect(self.host)
            last = 0
            while not self.ending.is_set():
                sent = time.monotonic()
                number = redis.call("INCR", f"counter:{index}")
                self.longest[index] = max(self.longest[index], time.monotonic() - sent)
                if number != last + 1:
                    raise ValueError(f"counter {index} went from {last} to {number}")
                last = self.written[index] = number
            redis.close()
        except Exception as error:  # whatever a client sees is an error of ours
            self.errors.append(f"writer {index}: {error!r}")
