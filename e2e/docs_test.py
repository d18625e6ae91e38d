"""What docs/troubleshooting.md quotes is what the programs say."""

import re

import pytest

from e2e.paths import ROOT

FOLDERS = ["archive", "cmd", "cri", "deploy", "engine", "kubelet-api"]


def quoted():
    for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines():
        first = line.split("|")[1] if line.startswith("| `") else ""
        yield from re.findall(r"`([^`]+)`", first)


@pytest.fixture(scope="module")
def source():
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.cc"))]
    # Literals that stand beside each other are one.
    return re.sub(r'"\s*"', "", "\n".join(path.read_text() for path in files))


@pytest.mark.parametrize("text", quoted())
def test_an_error_that_is_explained_is_one_that_is_said(source, text):
    assert text.split("unix://")[0] in source
