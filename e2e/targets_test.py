"""The target programs: plain, through dump and restore, and twice through it."""

import pytest

from e2e.paths import ROOT, TARGETS
from e2e.wait import until

# What a target needs on the command line.
OPTIONS = {"tcp_established": ["--tcp-established"]}

NAMES = sorted(path.stem for path in (ROOT / "e2e" / "targets").glob("*.cc"))


@pytest.mark.parametrize("name", NAMES)
def test_target(start, passes, folder, name):
    program = start(TARGETS / name, folder)
    program.options = OPTIONS.get(name, [])
    until(lambda: (folder / "ready").exists() or program.parent.poll() is not None, what="ready")
    program.pass_through(passes)
    (folder / "go").touch()
    code = program.wait()
    if code == 77:
        pytest.skip(program.out.strip())
    assert code == 0, program.err
