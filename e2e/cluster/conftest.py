"""One cluster for all tests of this folder, a namespace for each."""

import itertools
import re

import pytest

from e2e.cluster.cluster import DEFAULT_VERSION, Cluster
from e2e.cluster.workload import Namespace

numbers = itertools.count()


def pytest_addoption(parser):
    parser.addoption("--kubernetes", default=DEFAULT_VERSION, metavar="MINOR")
    parser.addoption("--short", action="store_true", help="one test of each kind")


def pytest_configure(config):
    config.addinivalue_line("markers", "short: is run by --short, too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--short"):
        left_out = [item for item in items if not item.get_closest_marker("short")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


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
    cluster.kubectl("delete", "namespace", name, "--now", "--wait=false")
