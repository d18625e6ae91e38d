"""What stasisd adds to a call that it passes on to containerd."""

import json
import subprocess

from bench.harness import Row
from e2e.paths import LOAD
from e2e.testbed.testbed import Testbed

RATE = 2000


def load(endpoint, rate, seconds):
    done = subprocess.run([LOAD, endpoint, str(rate), str(seconds)], check=True, timeout=120,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return json.loads(done.stdout)


def calls(run):
    """latency that stasisd adds to a forwarded call, and 2,000 calls a second"""
    seconds = run.size(5, 0.5)
    found = {}
    with Testbed() as bed:
        sockets = {"Stasis": bed.cri.endpoint, "containerd": bed.runtime.endpoint}
        for who in run.each(list(sockets)):
            for rate in (0, RATE):
                for figure, value in load(sockets[who], rate, seconds).items():
                    found.setdefault((rate, figure), {}).setdefault(who, []).append(value)
    for (rate, figure), samples in found.items():
        name = f"{RATE} calls a second" if rate else "one call after the other"
        unit = "us"
        if "_us" not in figure:
            unit = "calls" if figure == "errors" else "calls/s"
        target = 0 if rate and figure == "errors" else None
        run.add(Row("calls", f"{figure.removesuffix('_us').replace('_', ' ')}, {name}", samples, unit=unit,
                    target=target, base="containerd"))
    for figure, target in (("p50_us", 150), ("p99_us", 1000)):
        pairs = zip(found[0, figure]["Stasis"], found[0, figure]["containerd"], strict=True)
        added = [through - direct for through, direct in pairs]
        run.add(Row("calls", f"added to {figure.removesuffix('_us')}", {"Stasis": added}, unit="us",
                    target=target))
