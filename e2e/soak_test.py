"""The soak in short: every real program under load, through two checkpoints and a restore."""

import pytest

from e2e.paths import STASISD
from e2e.soak.programs import PROGRAMS
from e2e.soak.soak import Soak

pytestmark = pytest.mark.skipif(not STASISD.exists(), reason="stasisd is not built")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_under_load(bed, name):
    missing = PROGRAMS[name].missing()
    if missing:
        pytest.skip(f"missing {missing}")
    result = Soak(bed, PROGRAMS[name]).run(checkpoints=2, restores=1)
    assert not result.errors, "\n".join(result.errors)
    assert (result.checkpoints, result.restores) == (2, 1)
