"""Trees of processes on the host: how long they are frozen, and how fast they come back."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from bench.harness import Row
from bench.subject import Failed, Subject

PROBLEMS = (Failed, OSError, TimeoutError)


def engines(run):
    return ["Stasis", "CRIU"] if run.peer else ["Stasis"]


def dumps(run, item, name, fate="--leave-running", restore=False, repetitions=None, **shape):
    """Figures by who made them: frozen, total, and (if asked for) restore and peak."""
    found = {figure: {} for figure in ("frozen", "total", "restore", "peak")}
    broken = set()
    for who in run.each(engines(run), repetitions):
        if who in broken:
            continue
        try:
            with Subject(run.folder, **shape) as subject:
                dump = subject.dump(who, "--kill" if restore else fate)
                figures = {"frozen": dump.frozen, "total": dump.total, "peak": dump.peak_kib / 1024}
                if restore:
                    figures["restore"] = subject.restore(who)
                    figures["peak"] = max(figures["peak"], subject.peak_kib / 1024)
        except PROBLEMS as error:
            run.failed(item, f"{name}, {who}", error)
            broken.add(who)
            continue
        for figure, value in figures.items():
            found[figure].setdefault(who, []).append(value)
    return found


def add_dump(run, item, name, target, ratio=None, **shape):
    found = dumps(run, item, name, **shape)
    run.add(Row(item, f"frozen, {name}", found["frozen"], target=target, ratio=ratio))
    run.add(Row(item, f"whole checkpoint, {name}", found["total"]))


def frozen(run):
    """frozen and total times of a checkpoint that leaves the program running"""
    for mib in run.size([1024, 4096], [64]):
        add_dump(run, "frozen", f"{mib} MiB idle", 10, 1 / 45, mib=mib)
    mib = run.size(1024, 64)
    add_dump(run, "frozen", f"{mib} MiB, 50,000 pages dirtied a second", 50, mib=mib, rate=50_000)
    add_dump(run, "frozen", f"{mib} MiB that two processes share, idle", 10, 1 / 45, shared=mib, processes=2)
    threads, processes = run.size(1000, 50), run.size(200, 10)
    add_dump(run, "frozen", f"{threads} threads", 60, threads=threads)
    add_dump(run, "frozen", f"{processes} processes", 100, processes=processes)


def restore(run):
    """restore from the page cache until the program runs, all of its memory loaded"""
    mib, item = run.size(1024, 64), "restore"
    found = dumps(run, item, f"{mib} MiB", restore=True, mib=mib)
    run.add(Row(item, f"restore, {mib} MiB", found["restore"], ratio=0.6))
    speed = {who: [mib / 1024 / (took / 1000) for took in values] for who, values in found["restore"].items()}
    run.add(Row(item, f"speed of it, {mib} MiB", speed, unit="GiB/s", digits=2))
    threads = run.size(10_000, 100)
    found = dumps(run, item, f"{threads} threads", restore=True, threads=threads)
    run.add(Row(item, f"restore, {threads} threads", found["restore"], target=3000))
    run.add(Row(item, f"most memory of checkpoint and restore, {threads} threads", found["peak"], unit="MiB", target=64))


def together(run):
    """eight restores at once, by the core, against one alone"""
    mib, item = run.size(256, 16), "together"
    alone, at_once = [], []
    cores = len(os.sched_getaffinity(0))
    for _ in range(run.repetitions):
        subjects = [Subject(run.folder, mib=mib) for _ in range(8)]
        try:
            for subject in subjects:
                subject.__enter__()
                subject.dump("Stasis", "--kill")
            alone.append(subjects[0].restore("Stasis"))
            subjects[0].dump("Stasis", "--kill")
            start = time.monotonic()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda subject: subject.restore("Stasis"), subjects))
            at_once.append((time.monotonic() - start) * 1000 * min(cores, 8) / 8)
        finally:
            for subject in subjects:
                if subject.root:
                    subject.__exit__()
    run.add(Row(item, f"{mib} MiB each, time by the core", {"Stasis": at_once, "one alone": alone}, ratio=1.5,
                base="one alone"))


GROWTH = [("memory", "MiB", "mib", [64, 256, 1024, 4096, 8192], [16, 32]),
          ("processes", "processes", "processes", [1, 10, 100, 1000], [1, 5]),
          ("descriptors", "descriptors", "descriptors", [10, 100, 1000, 10_000], [10, 100])]


def growth(run):
    """plots of frozen, total and restore times over memory, processes and descriptors; peak memory"""
    peaks = {}
    for name, unit, shape, full, quick in GROWTH:
        lines = {}
        for size in run.size(full, quick):
            found = dumps(run, "growth", f"{size} {unit}", restore=True, repetitions=run.size(3, 1),
                          **{shape: size})
            for figure in ("frozen", "total", "restore"):
                run.add(Row("growth", f"{figure}, {size} {unit}", found[figure]))
            for figure, by in found.items():
                for who, values in by.items():
                    if figure != "peak":
                        middle = sorted(values)[len(values) // 2]
                        lines.setdefault(f"{who} {figure}", []).append((size, middle))
                    elif who == "Stasis":
                        peaks.setdefault(name, []).extend(values)
        if lines:
            run.plot(f"growth-{name}", f"A checkpoint and its restore by {name}", unit, "ms", lines)
    for name, values in peaks.items():
        run.add(Row("growth", f"most memory of the agent, by {name}", {"Stasis": [max(values)]}, unit="MiB",
                    target=64))
