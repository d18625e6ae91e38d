"""The measurements still work: one of them, small, once, without a peer."""

import subprocess
import sys

from e2e.paths import ROOT


def test_a_measurement_gives_its_figures():
    done = subprocess.run([sys.executable, "-m", "bench", "--quick", "--no-peer", "frozen"], cwd=ROOT,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| frozen, 64 MiB idle | ms | " in done.stdout
    assert "Not measured" not in done.stdout
