"""What a program of the soak is: an image, a command, and sessions that work against it.

A session is one client that counts: each answer has to be the number after the last one. So whatever is
lost, doubled or mixed up between sessions shows at the next answer.
"""

import http.client
from dataclasses import dataclass, field
from pathlib import Path

from e2e.testbed.images import Image
from e2e.wait import until

SOURCES = Path(__file__).parent / "sources"


class Wrong(Exception):
    """An answer that cannot be right."""


class Session:
    """One client. Subclasses say how it connects, and how it gets the next number."""

    def __init__(self, number):
        self.number = number
        self.last = 0
        self.asked = 0

    def connect(self, place):
        """Connects to the program at `place`; OSError while it is not up."""
        raise NotImplementedError

    def next(self):
        """The program's count for this client, one more at each call."""
        raise NotImplementedError

    def check(self):
        """What else has to hold; asked for now and then."""

    def close(self):
        pass

    def ask(self):
        answer = self.next()
        if answer != self.last + 1:
            raise Wrong(f"session {self.number} went from {self.last} to {answer}")
        self.last = answer
        self.asked += 1
        if self.asked % 20 == 0:
            self.check()

    def resume(self, mark):
        """The first answer after a restore: no earlier than `mark`, which was answered before the
        checkpoint, no later than what was asked for until it ended."""
        answer = self.next()
        if not mark < answer <= self.last + 2:
            raise Wrong(f"session {self.number} resumes at {answer}, not after {mark} up to {self.last + 2}")
        self.last = answer
        self.check()


class HttpSession(Session):
    """Counts over one kept connection: GET /add/NUMBER; GET /check says what the program finds of itself."""

    PORT = 8080

    def connect(self, place):
        self.connection = http.client.HTTPConnection(place.ip, self.PORT, timeout=60)
        self.connection.connect()
        self.connection.auto_open = 0  # a connection that the program closes is an error

    def get(self, path, **headers):
        self.connection.request("GET", path, headers=headers)
        response = self.connection.getresponse()
        return response, response.read()

    def next(self):
        response, body = self.get(f"/add/{self.number}")
        number, _, count = body.decode().partition(" ")
        if response.status != 200 or number != str(self.number):
            raise Wrong(f"session {self.number} was answered {response.status} {body[:200]!r}")
        return int(count)

    def check(self):
        response, body = self.get("/check")
        if response.status != 200 or body != b"ok":
            raise Wrong(f"the program finds {body[:500]!r}")

    def close(self):
        self.connection.close()


@dataclass
class Place:
    """Where a program runs just now."""

    bed: object
    pod: object
    container: str

    @property
    def ip(self):
        return self.pod.ip


@dataclass
class Program:
    name: str
    image: object  # gives its Image when called, after making what goes into it
    session: type = HttpSession
    sessions: int = 3
    security: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)  # more of the container's configuration
    prepare: object = None  # called with its first Place, once it runs
    needs: tuple = ()  # files of this machine without which it cannot run

    def missing(self):
        return [path for path in self.needs if not Path(path).exists()]

    def push(self, bed):
        """The reference of its image in the registry of the testbed."""
        return bed.registry.push(self.image(), f"soak-{self.name}")


def source(name):
    return SOURCES / name


def connected(session, place, seconds=60):
    """Connects the session as soon as the program answers."""
    def attempt():
        try:
            session.connect(place)
            return True
        except (OSError, EOFError):
            return False

    until(attempt, seconds, what=f"session {session.number} to connect", every=0.05)


__all__ = ["HttpSession", "Image", "Place", "Program", "Session", "Wrong", "connected", "source"]
