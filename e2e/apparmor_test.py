"""AppArmor profiles of programs on the host; skipped where the kernel or its parser has none."""

import shutil
import subprocess
from pathlib import Path

import pytest

from e2e.host import Program
from e2e.paths import TARGETS
from e2e.wait import until

PARSER = shutil.which("apparmor_parser", path="/usr/sbin:/sbin")
ENABLED = Path("/sys/module/apparmor/parameters/enabled")

pytestmark = pytest.mark.skipif(
    PARSER is None or not ENABLED.exists() or ENABLED.read_text().strip() != "Y", reason="no AppArmor")


@pytest.fixture
def load(folder):
    """Loads a profile of this name, for a path or for none; none of them outlives the test."""
    loaded = []

    def parse(how, text):
        subprocess.run([PARSER, how], input=text, check=True, text=True)

    def load_profile(name, attached_to=""):
        text = f"profile {name} {attached_to} flags=(attach_disconnected) {{ file, signal, ptrace, unix, capability, }}"
        parse("--replace", text)
        loaded.append(text)
        return lambda: parse("--remove", loaded.pop())

    yield load_profile
    for text in loaded:
        parse("--remove", text)


def labels(program):
    return {(task / "attr/current").read_text().strip() for task in Path(f"/proc/{program.pid}/task").iterdir()}


def threads(start, folder, *before):
    program = start(*before, TARGETS / "threads", folder)
    until(lambda: (folder / "ready").exists(), what="ready")
    return program


def test_every_thread_has_its_profile_again(start, folder, load):
    load("stasis-threads")
    program = threads(start, folder, "aa-exec", "-p", "stasis-threads", "--")
    program.restore(program.checkpoint())
    assert labels(program) == {"stasis-threads (enforce)"}
    (folder / "restored").touch()
    (folder / "go").touch()
    assert program.wait() == 0, program.err


def test_a_profile_that_is_not_there_is_not_lost_silently(start, folder, load):
    remove = load("stasis-gone")
    program = threads(start, folder, "aa-exec", "-p", "stasis-gone", "--")
    images = program.checkpoint()
    remove()
    with pytest.raises(AssertionError, match="AppArmor profile stasis-gone is not loaded"):
        program.restore(images)


def test_who_was_started_before_its_profile_stays_unconfined(folder, load):
    path = folder / "sleep"
    shutil.copy("/bin/sleep", path)
    program = Program(folder, [path, "1000"])
    try:
        load("stasis-path", attached_to=path)
        program.restore(program.checkpoint())
        assert labels(program) == {"unconfined"}
    finally:
        program.end()
