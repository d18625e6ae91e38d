"""A namespace's share of the disk of archives: it is kept, and others have theirs."""

import subprocess

import pytest

from e2e.rest_test import Api, run_counter
from e2e.testbed.rest import free_port, make_authority, make_certificate
from e2e.testbed.testbed import Testbed
from e2e.wait import until


@pytest.fixture
def shared(tmp_path, request):
    """A disk of 100 MiB for archives, of which each namespace has one, or as many as the test says."""
    make_authority(tmp_path)
    make_certificate(tmp_path, "server", "/CN=stasisd")
    make_certificate(tmp_path, "admin", "/O=stasis:admins/CN=ada")
    (tmp_path / "checkpoints").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", tmp_path / "checkpoints"], check=True)
    port = free_port()
    options = ["--api-listen", f"127.0.0.1:{port}", "--api-tls-cert", tmp_path / "server.crt", "--api-tls-key",
               tmp_path / "server.key", "--api-client-ca", tmp_path / "ca.crt", "--checkpoint-dir",
               tmp_path / "checkpoints", "--checkpoint-namespace-share", getattr(request, "param", 1)]
    try:
        with Testbed(shim_options=options) as bed:
            yield Api(tmp_path, bed, port)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "checkpoints"], check=True)


def test_a_namespace_has_its_share_of_the_disk_and_others_theirs(shared):
    for namespace in ("shop", "bank"):
        run_counter(shared.bed, "counters", namespace)

    def make(namespace):
        ask = lambda: shared.admin.ask("POST", f"/checkpoint/{namespace}/counters/count")
        # 500: of the same second as the last one, whose name it would have.
        return until(lambda: (answer := ask()).code != 500 and answer, what="a name", every=0.3)

    while (answer := make("shop")).code == 200:  # each is of at least 100 KiB
        name = answer.json["items"][0].rpartition("/")[2]
    assert answer.code == 507 and "--checkpoint-namespace-share" in answer.json["message"]
    assert "kubectl checkpoint delete" in answer.json["message"]
    assert make("bank").code == 200
    for one in shared.admin.get("/v1/namespaces/shop/checkpoints").json["items"]:
        assert shared.admin.ask("DELETE", f"/v1/namespaces/shop/checkpoints/{one['name']}").code == 200
    assert name and make("shop").code == 200


@pytest.mark.parametrize("shared", [20], indirect=True)
def test_a_share_is_of_what_archives_have_on_the_disk_and_not_of_what_they_unpack_to(shared):
    run_counter(shared.bed, "counters", command="x=$(yes abcdefgh | head -c 64000000); touch /ready; "
                                                "while :; do sleep 0.1; done")
    (container,) = shared.bed.cri.call("ListContainers")["containers"]
    until(lambda: shared.bed.cri.exec(container["id"], "ls", "/ready").code == 0, what="memory", every=0.2)
    make = lambda query: shared.admin.ask("POST", f"/checkpoint/default/counters/count?{query}")
    assert (refused := make("compress=none")).code == 507 and "--checkpoint-namespace-share" in refused.json["message"]
    assert not list((shared.folder / "checkpoints").iterdir())
    assert (made := make("compress=zstd")).code == 200, made.text
