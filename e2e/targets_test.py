"""The target programs: plain, through dump and restore, and twice through it."""

from pathlib import Path

import pytest

from e2e.paths import ROOT, TARGETS
from e2e.wait import until

# What a target needs on the command line.
OPTIONS = {"tcp_established": ["--tcp-established"]}

NAMES = sorted(path.stem for path in (ROOT / "e2e" / "targets").glob("*.cc"))


HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
OF_HUGE_PAGES = {"huge_pages", "system_v_huge"}


def add_huge_pages(count):
    """How many it became: the kernel gives what memory allows, and a machine may allow none."""
    try:
        before = int(HUGE_PAGES.read_text())
        HUGE_PAGES.write_text(str(before + count))
        return int(HUGE_PAGES.read_text()) - before
    except OSError:
        return 0


@pytest.fixture
def memory(name):
    """Of huge pages, for the targets that have them."""
    added = add_huge_pages(16) if name in OF_HUGE_PAGES else 0
    yield
    if added > 0:
        add_huge_pages(-added)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("memory")
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
