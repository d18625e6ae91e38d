"""One cluster for all tests of this folder, a namespace for each."""

import itertools
import re

import pytest

from e2e.cluster.cluster import Cluster
from e2e.cluster.workload import Namespace

numbers = itertools.count()


def pytest_addoption(parser):
    parser.addoption("--kubernetes", default="1.34", metavar="MINOR")


@pytest.fixture(scope="session")
def cluster(request):
    with Cluster.up(request.config.getoption("--kubernetes")) as running:
        yield running


@pytest.fixture
def namespace(cluster, request):
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:40].strip("-")
    name += f"-{next(numbers)}"
    made = Namespace(cluster, name)
    yield made
    # `--now`: what a test left running is of no use to the next.
    cluster.kubectl("delete", "namespace", name, "--now", "--wait=false")
