"""An interactive bash on a terminal: background jobs, stopped jobs, fg and bg."""

import os
import re
import time

from e2e.soak.program import Image, Program, Session, Wrong
from e2e.wait import until


class ShellSession(Session):
    """Types at the terminal, by the pipe that the runtime reads it from, and reads the container's log."""

    def connect(self, place):
        self.place = place
        folder = place.bed.folder / "state/io.containerd.grpc.v1.cri/containers" / place.container / "io"
        pipes = list(folder.rglob("*-stdin"))
        if not pipes:
            raise OSError(f"no standard input in {folder}")
        self.pipe = os.open(pipes[0], os.O_WRONLY | os.O_NONBLOCK)
        if self.last == 0:
            self.typed("PS1=; n=0; sleep 1000000 & sleep 1000001 &")
        else:
            self.wake()

    def wake(self):
        """A checkpoint may have been taken in the middle of check(): gets the shell back from what runs in
        the foreground, and lets all jobs run. TimeoutError: to be tried again, the key came too early."""
        os.write(self.pipe, b"\x1a")
        try:
            self.ask_shell("kill -CONT $(jobs -p); out=", 3)
        except TimeoutError:
            os.close(self.pipe)
            raise

    def log(self):
        text = self.place.bed.cri.log(self.place.pod, "program")
        return "\n".join(line.split(" ", 3)[3] for line in text.splitlines() if line.count(" ") >= 3)

    def typed(self, line):
        os.write(self.pipe, line.encode() + b"\n")

    def ask_shell(self, line, seconds=60):
        """What `line` prints; the mark is put together by the shell, so that its echo does not have it."""
        mark = f"{time.monotonic_ns()}"
        self.typed(f'{line}; echo "<"{mark} $out">"')
        found = until(lambda: re.search(f"<{mark} ([^>]*)>", self.log()), seconds, what=f"the shell after {line}")
        return found.group(1).strip()

    def next(self):
        return int(self.ask_shell("n=$((n + 1)); out=$n"))

    def ask(self):
        super().ask()
        if self.asked % 3 == 0:
            self.check()

    def check(self):
        # By a signal, to the background, to the foreground, and by the terminal's key.
        self.expect("kill -STOP %1; sleep 0.2; out=$(jobs -s | wc -l)", "1")
        self.expect("bg %1 >/dev/null; sleep 0.2; out=$(jobs -r | wc -l)", "2")
        self.stop_in_foreground()
        self.expect("bg %2 >/dev/null; sleep 0.2; out=$(jobs -r | wc -l)", "2")

    def stop_in_foreground(self):
        """The key throws away what was typed and not read yet, and does nothing before the job has the terminal."""
        said = self.log().splitlines().count("sleep 1000001")
        self.typed("fg %2")
        until(lambda: self.log().splitlines().count("sleep 1000001") > said, 60, what="a job in the foreground")
        for attempt in range(4):
            os.write(self.pipe, b"\x1a")
            try:
                return self.expect("out=$(jobs -s | wc -l)", "1", 3)
            except TimeoutError:
                if attempt == 3:
                    raise

    def expect(self, line, wanted, seconds=60):
        answer = self.ask_shell(line, seconds)
        if answer != wanted:
            raise Wrong(f"{line}: {answer}, not {wanted}")

    def close(self):
        os.close(self.pipe)


def image():
    return Image(["/usr/bin/soak-bash", "--norc", "--noediting", "-i"],
                 programs=["/bin/bash"], files={"usr/bin/soak-bash": "/bin/bash"}, user="1000")


PROGRAMS = [Program("shell", image, ShellSession, sessions=1, config={"tty": True, "stdin": True})]
