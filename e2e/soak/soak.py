"""One program through its checkpoints and restores."""

import statistics
import tarfile
import time
from dataclasses import dataclass, field

from e2e import journey, stats
from e2e.soak.load import Load
from e2e.soak.program import Place


@dataclass
class Result:
    program: str
    checkpoints: int = 0
    restores: int = 0
    errors: list = field(default_factory=list)
    frozen_ms: list = field(default_factory=list)
    restore_ms: list = field(default_factory=list)
    longest_wait_ms: float = 0.0

    def line(self):
        frozen = "-"
        if self.frozen_ms:
            frozen = (f"{statistics.median(self.frozen_ms):.1f} ms "
                      f"({min(self.frozen_ms):.1f} to {max(self.frozen_ms):.1f})")
        return (f"{self.program:14} {self.checkpoints:4} checkpoints {self.restores:3} restores "
                f"{len(self.errors)} errors  frozen {frozen}  longest wait {self.longest_wait_ms:.0f} ms")


class Soak:
    """`bed`: the testbed. `progress`: called with the result after each step."""

    def __init__(self, bed, program, progress=lambda result: None):
        self.bed, self.program, self.progress = bed, program, progress
        self.result = Result(program.name)
        self.archive = bed.folder / f"soak-{program.name}.tar"
        self.place = self.load = None
        self.runs = 0

    def run(self, checkpoints, restores):
        """Never raises for what the program or Stasis does wrong: that is in the result's errors."""
        try:
            self._start(self.program.push(self.bed))
            if self.program.prepare:
                self.program.prepare(self.place)
            self.load = Load(self.program, self.place)
            self.load.start()
            self.load.goes_on()
            for _ in range(checkpoints):
                self._checkpoint()
                self.load.goes_on()
                self.result.checkpoints += 1
                self.progress(self.result)
            for _ in range(restores):
                self._restore()
                self.result.restores += 1
                self.progress(self.result)
        except Exception as error:
            self.result.errors.append(f"{type(error).__name__}: {error}")
        finally:
            self._end()
        return self.result

    def _start(self, image):
        self.runs += 1
        pod = self.bed.cri.run_pod(f"soak-{self.program.name}-{self.runs}")
        self.place = Place(self.bed, pod, "")
        start = time.monotonic()
        self.place.container = self.bed.cri.run(pod, "program", image, security=self.program.security,
                                                **self.program.config)
        return (time.monotonic() - start) * 1000

    def _checkpoint(self):
        self.archive.unlink(missing_ok=True)
        journey.checkpoint(self.bed.cri, self.place.container, self.archive)
        with tarfile.open(self.archive) as tar:
            figures = stats.read(tar.extractfile("stats-dump").read())
        self.result.frozen_ms.append(figures["frozen_us"] / 1000)

    def _restore(self):
        marks = self.load.marks()
        self._checkpoint()
        self.load.stop()
        self.load.raise_errors()
        image = journey.push_image(self.archive,
                                   f"{self.bed.registry.address}/soak-{self.program.name}:{self.runs + 1}")
        self.bed.cri.remove_pod(self.place.pod.id)
        self.place = None
        self.result.restore_ms.append(self._start(image))
        self.load.resume(self.place, marks)
        self.load.goes_on()

    def _end(self):
        if self.load:
            self.load.stop()
            if not self.result.errors:
                self.result.errors += self.load.errors  # what came after the last step
            self.result.longest_wait_ms = self.load.longest * 1000
        if self.result.errors and self.place:
            self._show_logs()
        if self.place:
            self.bed.runtime.remove_pod(self.place.pod.id)
        self.archive.unlink(missing_ok=True)

    def _show_logs(self):
        """What may explain an error: the end of the program's log and of stasisd's."""
        try:
            log = self.bed.cri.log(self.place.pod, "program").splitlines()[-12:]
        except OSError:
            log = []
        self.result.errors += [f"log: {line}" for line in log]
        self.result.errors += [f"stasisd: {line}" for line in
                               self.bed.service_log("stasisd", 5).splitlines()]
