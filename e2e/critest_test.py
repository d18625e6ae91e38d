"""A part of critest, short enough for each run of the tests; `./dev critest` runs all of it."""

import subprocess
import sys

import pytest

from e2e.paths import CRITEST, STASISD

#: What a proxy could get wrong: streams, errors, lists, images and the life of containers and pods.
FOCUS = "Streaming|Idempotence|Image Manager|runtime info|basic operations"

pytestmark = pytest.mark.skipif(not (STASISD.exists() and CRITEST.exists()),
                                reason="stasisd or critest is not built")


def test_critest_ends_as_it_does_without_stasisd():
    command = [sys.executable, "-m", "e2e.critest", f"--ginkgo.focus={FOCUS}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
