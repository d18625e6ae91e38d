"""A client for redis: as much of its protocol as the tests need."""

import socket


class Redis:
    def __init__(self, connection):
        self.connection = connection
        self.answers = connection.makefile("rb")

    @classmethod
    def connect(cls, host, port=6379):
        """A connection that was answered, or None."""
        try:
            redis = cls(socket.create_connection((host, port), timeout=10))
            return redis if redis.call("PING") == "PONG" else None
        except (OSError, EOFError):
            return None

    def send(self, *words):
        encoded = [str(word).encode() for word in words]
        self.connection.sendall(b"*%d\r\n" % len(encoded) +
                                b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))

    def call(self, *words):
        self.send(*words)
        return self._answer()

    def pipeline(self, commands, batch=500):
        """The answers to many commands, sent in batches."""
        answers, waiting = [], 0
        for command in commands:
            self.send(*command)
            waiting += 1
            if waiting == batch:
                answers += [self._answer() for _ in range(waiting)]
                waiting = 0
        return answers + [self._answer() for _ in range(waiting)]

    def info(self):
        lines = self.call("INFO").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def close(self):
        self.answers.close()  # it keeps the socket open by itself
        self.connection.close()

    def _answer(self):
        line = self.answers.readline()
        if not line:
            raise EOFError("redis closed the connection")
        kind, rest = line[:1], line[1:].rstrip().decode()
        if kind == b"-":
            raise ValueError(rest)
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.answers.read(size + 2)[:-2].decode()
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        return int(rest) if kind == b":" else rest
