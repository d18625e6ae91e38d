"""docs/user-guide.md: its commands, word by word, in one shell."""

import os
import re
import subprocess

import pytest

from e2e.cluster import agents
from e2e.paths import BIN, ROOT


def commands():
    """The indented blocks, but for the one that names an example's registry."""
    lines = (ROOT / "docs" / "user-guide.md").read_text().splitlines()
    script = "\n".join(line[4:] for line in lines if line.startswith("    "))
    assert script.startswith("export REGISTRY=registry.example\n")
    return script.partition("\n")[2]


@pytest.fixture
def known_agents(cluster):
    agents.serve_api(cluster)
    yield cluster
    cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "namespace/shop", "clusterrolebinding/ann-nodes")
    agents.leave(cluster)


def test_the_user_guide_word_by_word(known_agents, tmp_path):
    cluster = known_agents
    cluster.image("busybox")
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", commands()], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=False, env={**os.environ, "REGISTRY": cluster.control_plane.registry.address,
                          "KUBECONFIG": str(cluster.kubectl.kubeconfig),
                          "PATH": f"{cluster.kubectl.program.parent}:{BIN}:{os.environ['PATH']}"})
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = re.findall(r"^(\d+)$", done.stdout, re.MULTILINE)[:2]
    assert int(before) > 1 and int(after) > 1
    assert "Checkpointed" in done.stdout and "Restored" in done.stdout
    assert (tmp_path / "evidence.tar").stat().st_mode & 0o777 == 0o600
