"""What docs/troubleshooting.md quotes is what the programs say, and manuals have what they take."""

import json
import re
import subprocess

import pytest

from e2e.paths import BIN, ROOT

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


MANUALS = {"stasis": "stasis.1", "kubectl-checkpoint": "kubectl-checkpoint.1", "stasisd": "stasisd.8",
           "stasis-node": "stasis-node.8"}


def flags_of(program, *commands):
    text = subprocess.run([BIN / program, *commands, "--help"], capture_output=True, text=True, check=True).stdout
    found = set(re.findall(r"^  +(?:-\w,)?(--[a-z-]+)", text, re.MULTILINE))
    for name in re.findall(r"^  ([a-z-]+) +[A-Z]", text.partition("Subcommands:")[2], re.MULTILINE) if not commands else []:
        found |= flags_of(program, name)
    return found


@pytest.mark.parametrize("program", MANUALS)
def test_every_flag_is_in_the_manual(program):
    manual = (ROOT / "docs" / "man" / MANUALS[program]).read_text().replace("\\-", "-")
    described = set(re.findall(r"--[a-z-]+", manual))
    assert flags_of(program) - described - {"--help", "--version"} == set()


REST = (ROOT / "docs" / "rest-api.md").read_text()


def test_every_path_of_the_api_is_in_its_reference():
    document = json.loads((ROOT / "kubelet-api" / "openapi.json").read_text())
    known = {"get", "post", "delete", "put", "patch"}
    served = {(method.upper(), path) for path, of in document["paths"].items() for method in of if method in known}
    told = set()
    for row in re.findall(r"^\| (`(?:GET|POST|DELETE) .*?) \|", REST, re.MULTILINE):
        verb = ""
        for each in re.findall(r"`([^`]+)`", row):  # "GET /a", and of the same verb "/b"
            verb, _, path = each.rpartition(" ") if " " in each else (verb, "", each)
            path = path.partition("?")[0].replace("…", "/v1/namespaces/{ns}/checkpoints")
            told.add((verb, path.replace("{ns}", "{namespace}")))
    assert told == served


def test_every_metric_is_in_the_reference(source):
    assert set(re.findall(r"\bstasis_[a-z_]+_(?:total|running)\b", source)) == set(re.findall(r"`(stasis_[a-z_]+)", REST))


def test_every_annotation_and_label_is_explained(source):
    headers = "\n".join(path.read_text() for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.h")))
    names = set(re.findall(r'"(stasis\.dev/[a-z-]+)"', source + headers))
    docs = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    assert len(names) > 5 and {name for name in names if f"`{name}" not in docs} == set()
