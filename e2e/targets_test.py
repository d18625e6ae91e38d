"""The target programs: plain, through dump and restore, and twice through it."""

import pytest

from e2e.paths import TARGETS
from e2e.wait import until

NAMES = sorted(path.name for path in TARGETS.iterdir() if path.name != "pause" and path.is_file())


@pytest.mark.parametrize("name", NAMES)
def test_target(start, passes, folder, name):
    program = start(TARGETS / name, folder)
    until(lambda: (folder / "ready").exists() or program.parent.poll() is not None, what="ready")
    program.pass_through(passes)
    (folder / "go").touch()
    code = program.wait()
    if code == 77:
        pytest.skip(program.out.strip())
    assert code == 0, program.err
