"""Clocks of a restored program do not run backwards, also where the machine's do: after a reboot, say."""

import os

from e2e.wait import until

TEN_DAYS = 864_000
SCRIPT = """
import os, time
last = {clock: 0 for clock in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)}
while not os.path.exists("go"):
    for clock, before in last.items():
        last[clock] = time.clock_gettime(clock)
        assert last[clock] >= before, f"{clock} went from {before} to {last[clock]}"
    open("ready", "w").close()
    time.sleep(0.01)
"""


def test_a_machine_that_runs_for_less_long(start, passes, folder):
    # The program reads clocks ten days ahead of ours, to which a restore comes back.
    program = start("unshare", "--time", "--monotonic", str(TEN_DAYS), "--boottime", str(TEN_DAYS),
                    "/usr/bin/python3", "-c", SCRIPT)
    until(lambda: (folder / "ready").exists())
    program.pass_through(passes)
    (folder / "ready").unlink()
    until(lambda: (folder / "ready").exists(), what="the program to go on")
    if "--kill" in passes:
        assert os.stat(f"/proc/{program.pid}/ns/time").st_ino != os.stat("/proc/self/ns/time").st_ino
    (folder / "go").touch()
    assert program.wait() == 0, program.err
