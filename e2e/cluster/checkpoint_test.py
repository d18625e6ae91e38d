"""The kubelet's checkpoint endpoint, with stasisd behind it."""

import re
import stat
import subprocess
import tarfile
import time

import pytest

from e2e import journey
from e2e.cluster.kubectl import KubectlError
from e2e.wait import until


@pytest.mark.short
def test_the_answer_names_an_archive_that_only_root_can_read(namespace):
    namespace.run("one")
    answer = namespace.raw_checkpoint("one")
    [path] = answer["items"]
    assert re.fullmatch(rf"/var/lib/kubelet/checkpoints/checkpoint-one_{namespace.name}-main-[0-9T:Z-]+\.tar", path)
    archive = namespace.cluster.nodes["node1"].folder / path.lstrip("/")
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert {"config.dump", "spec.dump", "status.dump", "checkpoint/inventory.img", "container.log"} <= set(names)
    assert journey.member(archive, "config.dump")["rootfsImageName"] == namespace.cluster.image("counter")
    assert "counter" in journey.stasis("inspect", archive)


def test_the_program_runs_on_and_can_be_checkpointed_again(namespace):
    namespace.run("one")
    before = namespace.count("one")
    first = namespace.checkpoint("one")
    # The kubelet names archives by the second.
    until(lambda: time.strftime("%H:%M:%SZ", time.gmtime()) not in first.name, every=0.05)
    second = namespace.checkpoint("one")
    after = namespace.count("one")
    assert (after["count"], after["born"]) == (before["count"] + 1, before["born"])
    assert first.exists() and second.exists() and first != second
    assert namespace.status("one")["restartCount"] == 0


@pytest.mark.parametrize("query", ["?timeout=5", "?timeout=0", "?timeout=300"])
def test_a_timeout_that_is_long_enough_changes_nothing(namespace, query):
    namespace.run("one")
    assert len(namespace.raw_checkpoint("one", query=query)["items"]) == 1


@pytest.mark.parametrize("pod, container, query, said", [
    ("one", "other", "", "NotFound"), ("one", "main", "?timeout=soon", "NotFound"),
    ("one", "main", "?timeout=-1", "timeout value to be > 0")])
def test_what_the_kubelet_refuses_by_itself(namespace, pod, container, query, said):
    namespace.run("one")
    with pytest.raises(KubectlError, match=said):
        namespace.raw_checkpoint(pod, container, query)


def test_a_container_that_has_ended_is_not_found(namespace):
    init = {"name": "first", "image": namespace.cluster.image("busybox"), "command": ["true"]}
    namespace.run("one", initContainers=[init])
    with pytest.raises(KubectlError, match="checkpointing of .*/one/first failed .*container first not found"):
        namespace.raw_checkpoint("one", "first")


def test_without_space_the_error_says_so_and_nothing_is_left(namespace):
    namespace.run("one")
    node = namespace.cluster.nodes["node1"]
    node.checkpoints.mkdir(mode=0o700, exist_ok=True)
    node.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/var/lib/kubelet/checkpoints")
    try:
        with pytest.raises(KubectlError, match="checkpointing of .* failed .*[Nn]o space left"):
            namespace.raw_checkpoint("one")
        assert node.run("ls", "-A", "/var/lib/kubelet/checkpoints") == ""
    finally:
        node.run("umount", "/var/lib/kubelet/checkpoints")
    assert namespace.count("one")["count"] == 1


@pytest.fixture
def stuck_disk(namespace):
    """node1's folder of checkpoints on a disk whose writes wait until it is told to go on; its kubelet waits for
    a runtime's answer 3 seconds in place of 2 minutes."""
    node = namespace.cluster.nodes["node1"]
    folder = "/var/lib/kubelet/checkpoints"
    node.checkpoints.mkdir(mode=0o700, exist_ok=True)
    try:
        node.run("bash", "-c", f"truncate -s 1G /var/lib/kubelet/disk && mkfs.ext4 -q /var/lib/kubelet/disk && "
                 f"mount -o loop /var/lib/kubelet/disk {folder}")
    except RuntimeError as error:
        pytest.skip(f"there is no loop device: {error}")
    go_on = lambda: node.run("bash", "-c", f"fsfreeze -u {folder} || :")
    namespace.run("one")
    try:
        with node.kubelet_settings(runtimeRequestTimeout="3s"):
            until(lambda: namespace.name in namespace.kubectl("get", "--raw", "/api/v1/nodes/node1/proxy/pods"),
                  what="a kubelet that knows its pods again")
            node.run("fsfreeze", "-f", folder)
            yield go_on
    finally:
        go_on()
        until(lambda: node.run("bash", "-c", f"umount {folder} && echo gone || :"), what="the disk to be free")
        node.run("rm", "/var/lib/kubelet/disk")


def test_a_checkpoint_beyond_the_kubelets_time_leaves_a_container_that_runs(namespace, stuck_disk):
    namespace.ask("one", "/grow?64")
    before = namespace.count("one")
    with pytest.raises(KubectlError, match="checkpointing of .*/one/main failed .*DeadlineExceeded"):
        namespace.raw_checkpoint("one")
    assert namespace.count("one") == {"count": before["count"] + 1, "born": before["born"]}
    stuck_disk()
    node = namespace.cluster.nodes["node1"]
    until(lambda: "error container not checkpointed" in node.log("stasisd", 3), what="the end of the checkpoint")
    assert node.run("find", "/var/lib/kubelet/checkpoints", "-type", "f") == ""
    assert len(namespace.raw_checkpoint("one")["items"]) == 1
    assert namespace.status("one")["restartCount"] == 0


def test_a_user_without_the_right_is_refused_by_the_kubelet(namespace):
    """Asked without the API server in between, as a client in the node's network may."""
    namespace.run("one")
    token = namespace.kubectl("create", "token", "default").strip()
    address = namespace.cluster.nodes["node1"].address
    done = subprocess.run(
        ["curl", "-sS", "--cacert", namespace.cluster.authority.certificate, "-X", "POST", "-w", "%{http_code}",
         "-H", f"Authorization: Bearer {token}",
         f"https://{address}:10250/checkpoint/{namespace.name}/one/main"],
        capture_output=True, text=True, check=True)
    assert done.stdout.endswith("403") and "nodes" in done.stdout and "checkpoint" in done.stdout
