"""What every measurement shares: repetitions, medians with their spread, ratios, and where they go."""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from bench import machine, svg

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """Samples of one figure, by who made them. `target`: at most this; `ratio`: at most this part of the
    `base`'s."""

    item: str
    what: str
    samples: dict
    unit: str = "ms"
    target: float | None = None
    ratio: float | None = None
    base: str = "CRIU"
    digits: int = 1

    def median(self, who):
        return statistics.median(self.samples[who]) if self.samples.get(who) else None

    def shown(self, who):
        values = self.samples.get(who)
        if not values:
            return "–"
        show = lambda value: f"{value:.{self.digits}f}"
        return f"{show(self.median(who))} ({show(min(values))}–{show(max(values))})"

    def measured_ratio(self):
        ours, base = self.median("Stasis"), self.median(self.base)
        return ours / base if ours is not None and base else None

    def verdict(self):
        ours, ratio = self.median("Stasis"), self.measured_ratio()
        checks = [] if self.target is None or ours is None else [ours <= self.target]
        checks += [] if self.ratio is None or ratio is None else [ratio <= self.ratio]
        return "" if not checks else "reached" if all(checks) else "missed"

    def wanted(self):
        parts = [] if self.target is None else [f"≤ {self.target:g} {self.unit}"]
        parts += [] if self.ratio is None else [f"≤ {self.ratio:.3g} × {self.base}"]
        return ", ".join(parts)

    def cells(self):
        ratio = self.measured_ratio()
        others = [f"{who} {self.shown(who)}" for who in self.samples if who != "Stasis"]
        return [self.what, self.unit, self.shown("Stasis"), "; ".join(others),
                "" if ratio is None else f"{ratio:.3f}", self.wanted(), self.verdict()]


@dataclass
class Run:
    """One run of some items: its sizes, and what it found."""

    quick: bool
    folder: Path  # on the disk that is measured; gone afterwards
    peer: bool  # whether CRIU is there
    rows: list = field(default_factory=list)
    failures: list = field(default_factory=list)

    @property
    def repetitions(self):
        return 1 if self.quick else 5

    def size(self, full, quick):
        return quick if self.quick else full

    def each(self, whos, repetitions=None):
        """Repetition by repetition, everybody in turn; the order turns round each time."""
        for number in range(repetitions or self.repetitions):
            yield from (whos if number % 2 == 0 else list(reversed(whos)))

    def add(self, row):
        self.rows.append(row)
        print("   ", " | ".join(cell for cell in row.cells() if cell), flush=True)

    def failed(self, item, what, error):
        """What could not be measured is in the table too."""
        text = " ".join(str(error).split())[:400]
        self.failures.append((item, what, text))
        print(f"    {what}: failed: {text}", flush=True)

    def plot(self, name, title, x, y, lines):
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.svg").write_text(svg.plot(title, x, y, lines), encoding="utf-8")

    def markdown(self, facts):
        head = ["what", "unit", "Stasis: median (least–most)", "others", "ratio", "target", ""]
        lines = ["# Measurements", "", *machine.markdown(facts), "",
                 f"Medians of {self.repetitions} (growth: {self.size(3, 1)}), with the least and the most."]
        for item in dict.fromkeys(row.item for row in self.rows):
            lines += ["", f"## {item}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
            lines += ["| " + " | ".join(row.cells()) + " |" for row in self.rows if row.item == item]
        if self.failures:
            lines += ["", "## Not measured", ""]
            lines += [f"* {item}, {what}: {text}" for item, what, text in self.failures]
        return "\n".join(lines) + "\n"

    def write(self, facts):
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "results.md").write_text(self.markdown(facts), encoding="utf-8")
        (RESULTS / "results.json").write_text(self.json(facts), encoding="utf-8")

    def json(self, facts):
        rows = [{"item": row.item, "what": row.what, "unit": row.unit, "samples": row.samples,
                 "target": row.target, "ratio": row.ratio, "base": row.base, "verdict": row.verdict()}
                for row in self.rows]
        return json.dumps({"machine": facts, "rows": rows, "failures": self.failures}, indent=1)
