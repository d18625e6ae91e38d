"""Redis that appends each write to a file and forks to save and to rewrite it."""

from e2e.redis import Redis
from e2e.soak.program import Image, Program, Session, Wrong

COMMAND = ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data", "--save", "",
           "--appendonly", "yes", "--appendfsync", "everysec"]


class RedisSession(Session):
    def connect(self, place):
        self.redis = Redis.connect(place.ip)
        if self.redis is None:
            raise OSError("not up")

    def next(self):
        return self.redis.call("INCR", f"counter:{self.number}")

    def check(self):
        if self.asked % 40 == 0:
            self._fork("BGSAVE" if self.number % 2 else "BGREWRITEAOF")
        info = self.redis.info()
        for key in ("rdb_last_bgsave_status", "aof_last_bgrewrite_status", "aof_last_write_status"):
            if info[key] != "ok":
                raise Wrong(f"{key} is {info[key]}")

    def _fork(self, command):
        try:
            self.redis.call(command)
        except ValueError as refused:  # one of them runs already
            if "in progress" not in str(refused) and "child" not in str(refused):
                raise

    def close(self):
        self.redis.close()


PROGRAMS = [Program(
    "redis", lambda: Image(COMMAND, programs=["/usr/bin/redis-server", "/usr/bin/redis-cli"], user="1000"),
    RedisSession, needs=("/usr/bin/redis-server",))]
