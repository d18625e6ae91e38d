"""The sessions of a program, each in a thread of its own that asks all the time."""

import threading
import time

from e2e.soak.program import connected
from e2e.wait import until

ANSWERS = 5  # that each session has to have between two checkpoints
SECONDS = 60  # that they may take


class Failed(Exception):
    """What the sessions saw."""


class Load:
    def __init__(self, program, place):
        self.sessions = [program.session(number) for number in range(program.sessions)]
        self.place = place
        self.errors = []
        self.longest = 0.0
        self.threads = []

    def start(self):
        self._run(lambda session: connected(session, self.place))

    def resume(self, place, marks):
        """Goes on against a restored program, which has to have at least what `marks` says."""
        self.place = place

        def first(session):
            connected(session, place)
            session.resume(marks[session.number])

        self._run(first)

    def marks(self):
        """What each session was answered last."""
        return [session.last for session in self.sessions]

    def goes_on(self):
        """Waits until every session had some more answers."""
        wanted = [session.asked + ANSWERS for session in self.sessions]
        until(lambda: self.errors or all(session.asked >= count for session, count in
                                         zip(self.sessions, wanted, strict=True)),
              SECONDS, what="answers to every session")
        self.raise_errors()

    def stop(self):
        self.ending.set()
        for thread in self.threads:
            thread.join(SECONDS)
        for session in self.sessions:
            try:
                session.close()
            except OSError:
                pass
        self.threads = []

    def raise_errors(self):
        if self.errors:
            raise Failed("; ".join(self.errors))

    def _run(self, first):
        self.ending = threading.Event()
        self.threads = [threading.Thread(target=self._work, args=[session, first], daemon=True)
                        for session in self.sessions]
        for thread in self.threads:
            thread.start()

    def _work(self, session, first):
        try:
            first(session)
            while not self.ending.is_set():
                start = time.monotonic()
                session.ask()
                self.longest = max(self.longest, time.monotonic() - start)
                time.sleep(0.002)
        except Exception as error:  # whatever a client sees is an error of ours
            self.errors.append(f"session {session.number}: {error!r}")
