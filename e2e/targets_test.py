"""The target programs: plain, through dump and restore, and twice through it."""

import pytest

from e2e.paths import ROOT, TARGETS
from e2e.wait import until

NAMES = sorted(path.stem for path in (ROOT / "e2e" / "targets").glob("*.cc"))


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
