"""The REST API with a real API server behind it: who is known by a token, and what their roles allow."""

import json
import shutil
import subprocess
import urllib.request

import pytest

from e2e.paths import CACHE
from e2e.rest_test import Api, run_counter
from e2e.testbed.rest import Rest, free_port, make_authority, make_certificate, openssl
from e2e.testbed.testbed import Testbed
from e2e.wait import until

PROGRAMS = sorted(CACHE.glob("kubernetes-*/kube-apiserver"))
pytestmark = pytest.mark.skipif(not PROGRAMS or not shutil.which("etcd"),
                                reason="needs etcd and a kube-apiserver: ./dev cluster builds it")
TOKENS = """admin-token,admin,1,system:masters
agent-token,stasisd,2
ann-token,ann,3
ben-token,ben,4
prometheus-token,prometheus,5
"""
RBAC = "/apis/rbac.authorization.k8s.io/v1"
RULES = {
    "maker": {"apiGroups": ["stasis.dev"], "resources": ["checkpoints"],
              "verbs": ["create", "list", "get"]},
    "scraper": {"nonResourceURLs": ["/metrics"], "verbs": ["get"]},
}


class ApiServer:
    """etcd and kube-apiserver on loopback."""

    def __init__(self, folder, start):
        self.folder = folder
        store, peer, self.port = free_port(), free_port(), free_port()
        (folder / "tokens.csv").write_text(TOKENS)
        (folder / "agent-token").write_text("agent-token\n")
        openssl(folder, "genrsa", "-out", "accounts.key", 2048)
        start("etcd", ["etcd", "--data-dir", folder / "etcd", "--unsafe-no-fsync",
                       "--listen-client-urls", f"http://127.0.0.1:{store}",
                       "--advertise-client-urls", f"http://127.0.0.1:{store}",
                       "--listen-peer-urls", f"http://127.0.0.1:{peer}"])
        self.service = start("kube-apiserver", [
            PROGRAMS[-1], f"--etcd-servers=http://127.0.0.1:{store}", "--bind-address=127.0.0.1",
            f"--secure-port={self.port}", "--service-cluster-ip-range=10.99.0.0/24",
            "--authorization-mode=RBAC", f"--token-auth-file={folder}/tokens.csv",
            f"--tls-cert-file={folder}/server.crt", f"--tls-private-key-file={folder}/server.key",
            "--service-account-issuer=https://test", f"--service-account-key-file={folder}/accounts.key",
            f"--service-account-signing-key-file={folder}/accounts.key",
            "--endpoint-reconciler-type=none"])
        self.url = f"https://127.0.0.1:{self.port}"
        self.rest = Rest(self.url, folder / "ca.crt", token="admin-token")
        until(self.is_ready, 90, "kube-apiserver", every=0.2)

    def is_ready(self):
        assert self.service.poll() is None
        try:
            return self.rest.get("/readyz").code == 200
        except OSError:
            return False

    def create(self, path, **fields):
        request = urllib.request.Request(
            self.url + path, method="POST", data=json.dumps(fields).encode(),
            headers={"Authorization": "Bearer admin-token", "Content-Type": "application/json"})
        urllib.request.urlopen(request, context=self.rest.tls, timeout=30).close()

    def allow(self, user, role, namespace=None):
        ref = {"apiGroup": "rbac.authorization.k8s.io", "name": role}
        cluster = namespace is None
        self.create(RBAC + ("/clusterrolebindings" if cluster else
                            f"/namespaces/{namespace}/rolebindings"),
                    metadata={"name": f"{user}-{role}"},
                    subjects=[{"kind": "User", "name": user, "apiGroup": ref["apiGroup"]}],
                    roleRef={**ref, "kind": "ClusterRole"})


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    make_authority(folder)
    make_certificate(folder, "server", "/CN=server")
    make_certificate(folder, "admin", "/O=system:masters/CN=root")
    make_certificate(folder, "cara", "/CN=cara")
    running = []

    def start(name, command):
        with open(folder / f"{name}.log", "wb") as log:
            running.append(subprocess.Popen([str(word) for word in command], stdout=log, stderr=log))
        return running[-1]

    try:
        server = ApiServer(folder, start)
        server.create("/api/v1/namespaces", metadata={"name": "other"})
        for name, rule in RULES.items():
            server.create(f"{RBAC}/clusterroles", metadata={"name": name}, rules=[rule])
        server.allow("stasisd", "system:auth-delegator")
        server.allow("ann", "maker", "default")
        server.allow("cara", "maker", "other")
        server.allow("prometheus", "scraper")
        port = free_port()
        options = ["--api-listen", f"127.0.0.1:{port}", "--api-tls-cert", folder / "server.crt",
                   "--api-tls-key", folder / "server.key", "--api-client-ca", folder / "ca.crt",
                   "--api-server", server.url, "--api-server-ca", folder / "ca.crt",
                   "--api-server-token-file", folder / "agent-token",
                   "--checkpoint-dir", folder / "checkpoints"]
        with Testbed(shim_options=options) as bed:
            yield Api(folder, bed, port)
    finally:
        for service in reversed(running):
            service.terminate()
            service.wait(30)


def with_token(api, token):
    return Rest(api.url, api.folder / "ca.crt", token=token)


def test_a_role_in_a_namespace_is_for_that_namespace(api):
    run_counter(api.bed, "counters")
    run_counter(api.bed, "strangers", "other")
    ann = with_token(api, "ann-token")
    made = ann.ask("POST", "/checkpoint/default/counters/count")
    assert made.code == 200, made.text
    refused = ann.ask("POST", "/checkpoint/other/strangers/count")
    assert refused.code == 403 and "ann may not create checkpoints.stasis.dev" in refused.json["message"]
    name = made.json["items"][0].rpartition("/")[2]
    assert ann.get(f"/v1/namespaces/default/checkpoints/{name}").code == 200
    assert ann.ask("DELETE", f"/v1/namespaces/default/checkpoints/{name}").code == 403
    assert ann.get("/v1/namespaces/default/checkpoints").json["items"][0]["name"] == name
    for path in ("/v1/checkpoints", "/v1/namespaces/other/checkpoints", "/metrics"):
        assert ann.get(path).code == 403


def test_certificates_have_roles_too(api):
    cara = api.client("cara")
    assert cara.get("/v1/namespaces/other/checkpoints").code == 200
    assert cara.get("/v1/namespaces/default/checkpoints").code == 403
    assert api.admin.get("/v1/checkpoints").code == 200


def test_tokens_without_a_role_and_strange_ones(api):
    assert with_token(api, "ben-token").get("/v1/namespaces/default/checkpoints").code == 403
    assert with_token(api, "no-such-token").get("/v1/namespaces/default/checkpoints").code == 401
    assert api.client().get("/v1/checkpoints").code == 401
    assert with_token(api, "prometheus-token").get("/metrics").code == 200
    assert with_token(api, "prometheus-token").get("/v1/checkpoints").code == 403


def test_an_api_server_that_is_not_ours_lets_nobody_in(api, tmp_path):
    make_authority(tmp_path, "ca")
    port = free_port()
    server = [word for word in api.bed.shim_options if str(word).startswith("https://")][0]
    options = ["--api-listen", f"127.0.0.1:{port}", "--api-server", server, "--api-server-ca",
               tmp_path / "ca.crt", "--api-server-token-file", api.folder / "agent-token"]
    with Testbed(shim_options=options):
        client = Rest(f"http://127.0.0.1:{port}", token="admin-token")
        assert client.get("/v1/checkpoints").code == 503
        assert client.get("/healthz").code == 200
