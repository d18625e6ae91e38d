"""Archives of real and of random memory, plain and in zstd frames."""

import json
import os

from bench.harness import Row
from bench.subject import COMMANDS, Subject
from bench.subject import run as run_command
from bench.trees import PROBLEMS
from e2e.wait import until

LEVELS = ["none", "zstd:1", "zstd:3", "zstd:9"]

# Objects and text as programs have them: dictionaries of short strings and numbers, and the modules of Python.
PYTHON = """
import ast, asyncio, decimal, email, http.client, json, os, sqlite3, sys, time, xml.dom.minidom
rows = [{"id": i, "name": f"user {i}", "mail": f"user.{i}@example.org", "score": i * 7919 % 1000, "tags": ["a", "b", str(i % 17)]}
        for i in range(int(sys.argv[1]))]
text = json.dumps(rows)
open("ready", "w").close()
while True: time.sleep(60)
"""


def workloads(run):
    rows, mib = run.size(600_000, 20_000), run.size(512, 32)
    return {"Python's objects": {"command": ["/usr/bin/python3", "-c", PYTHON, rows]},
            f"{mib} MiB that do not repeat": {"mib": mib}}


def archived(subject, how):
    """The report of a checkpoint that ends the program, how long it took, and how long its restore took."""
    subject.images = subject.folder / "images"
    archive = subject.folder / "archive.tar"
    took, peak = run_command([*COMMANDS["Stasis"]["dump"], "--tree", subject.root, "--output", archive, "--compress", how,
                              "--json", "--kill"], subject.images)
    report = json.loads((subject.folder / "said").read_text(encoding="utf-8"))
    os.waitpid(subject.root, 0)
    restored, restore_peak = run_command([*COMMANDS["Stasis"]["restore"], "-d", "-S", "--archive", archive], subject.images)
    archive.unlink()
    return report, {"checkpoint": took, "restore": restored, "peak": max(peak, restore_peak) / 1024}


def compression(run):
    """ratio, processor time and whole times of archives that are compressed, by level"""
    item, none = "compression", LEVELS[0]
    for name, shape in workloads(run).items():
        figures = {figure: {} for figure in ("ratio", "cpu", "checkpoint", "restore", "peak")}
        for how in run.each(LEVELS):
            try:
                with Subject(run.folder, **shape) as subject:
                    if "command" in shape:
                        until((subject.folder / "ready").exists, seconds=120, what="the workload")
                    report, times = archived(subject, how)
            except PROBLEMS as error:
                run.failed(item, f"{name}, {how}", error)
                continue
            if how != none:
                times["ratio"] = report["compression"]["ratio"]
                times["cpu"] = report["compression"]["cpu_seconds_per_gb"]
            for figure, value in times.items():
                figures[figure].setdefault(how, []).append(value)
        run.add(Row(item, f"ratio, {name}", figures["ratio"], unit="", digits=2))
        run.add(Row(item, f"processor time, {name}", figures["cpu"], unit="s/GB", digits=2))
        run.add(Row(item, f"whole checkpoint, {name}", figures["checkpoint"]))
        run.add(Row(item, f"whole restore, {name}", figures["restore"]))
        run.add(Row(item, f"most memory of the agent, {name}", figures["peak"], unit="MiB"))
