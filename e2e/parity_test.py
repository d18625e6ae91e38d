"""stasisd answers as containerd does, wherever it has nothing of its own to say."""

import pytest

from e2e import parity
from e2e.paths import STASISD
from e2e.testbed.testbed import Testbed


@pytest.fixture(scope="module")
def quiet_bed():
    """A testbed in which nothing else runs, so that lists hold the same."""
    with Testbed() as testbed:
        yield testbed


@pytest.mark.parametrize("case", parity.CASES if STASISD.exists() else [],
                         ids=[case.__name__ for case in parity.CASES] if STASISD.exists() else [])
def test_parity(quiet_bed, case):
    found = parity.differences(*parity.compare(quiet_bed, case))
    assert not found, "\n".join(found)
