"""The REST API with a real API server behind it: who is known by a token, and what their roles allow."""

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request

import pytest

from e2e.journey import stasis
from e2e.paths import BIN, CACHE, ROOT
from e2e.rest_test import Api, run_counter
from e2e.testbed.registry import Registry
from e2e.testbed.rest import Agent, Rest, free_port, make_authority, make_certificate, openssl
from e2e.testbed.testbed import Testbed
from e2e.wait import until

PROGRAMS = sorted(path for path in CACHE.glob("kubernetes-*/kube-apiserver")
                  if (path.parent / "kubectl").exists())
pytestmark = pytest.mark.skipif(not PROGRAMS or not shutil.which("etcd"),
                                reason="needs etcd and a kube-apiserver: ./dev cluster builds it")
TOKENS = """admin-token,admin,1,system:masters
agent-token,stasisd,2
ann-token,ann,3
ben-token,ben,4
prometheus-token,prometheus,5
dora-token,dora,6
"""
RBAC = "/apis/rbac.authorization.k8s.io/v1"
RULES = {
    "maker": {"apiGroups": ["stasis.dev"], "resources": ["checkpoints"],
              "verbs": ["create", "list", "get"]},
    "viewer": {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list"]},
    "pods": {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
    "scraper": {"nonResourceURLs": ["/metrics"], "verbs": ["get"]},
}


class ApiServer:
    """etcd and kube-apiserver on loopback."""

    def __init__(self, folder, start, tokens=""):
        self.folder = folder
        store, peer, self.port = free_port(), free_port(), free_port()
        (folder / "tokens.csv").write_text(TOKENS + tokens)
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
            "--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount",
            f"--kubelet-certificate-authority={folder}/ca.crt",
            f"--kubelet-client-certificate={folder}/admin.crt",
            f"--kubelet-client-key={folder}/admin.key",
            "--kubelet-preferred-address-types=InternalIP"])
        self.url = f"https://127.0.0.1:{self.port}"
        self.rest = Rest(self.url, folder / "ca.crt", token="admin-token")
        until(self.is_ready, 90, "kube-apiserver", every=0.2)
        self.allow("stasisd", "system:auth-delegator")

    def is_ready(self):
        assert self.service.poll() is None
        try:
            return self.rest.get("/readyz").code == 200
        except OSError:
            return False

    def create(self, path, method="POST", media_type="application/json", **fields):
        request = urllib.request.Request(
            self.url + path, method=method, data=json.dumps(fields).encode(),
            headers={"Authorization": "Bearer admin-token", "Content-Type": media_type})
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
    # The agent is reached at the bridge of its testbed, too: the API server proxies to no loopback address.
    make_certificate(folder, "server", "/CN=server", addresses=[
        "127.0.0.1", *(f"10.213.{number}.1" for number in range(200))])
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
        server.allow("ann", "maker", "default")
        server.allow("cara", "maker", "other")
        server.allow("ann", "viewer")
        server.allow("prometheus", "scraper")
        port = free_port()
        registry = Registry.serve(folder, start)
        options = ["--api-listen", f"0.0.0.0:{port}", "--push-to", f"http://{registry.address}/saved/{{namespace}}/", "--api-tls-cert", folder / "server.crt",
                   "--api-tls-key", folder / "server.key", "--api-client-ca", folder / "ca.crt",
                   "--api-server", server.url, "--api-server-ca", folder / "ca.crt",
                   "--api-server-token-file", folder / "agent-token",
                   "--checkpoint-dir", folder / "checkpoints"]
        with Testbed(shim_options=options) as bed:
            made = Api(folder, bed, port)
            made.server, made.registry = server, registry.address
            run_counter(bed, "counters", more=["debugger"])
            run_counter(bed, "strangers", "other")
            yield made
    finally:
        for service in reversed(running):
            service.terminate()
            service.wait(30)


def with_token(api, token):
    return Agent(api.url, api.folder / "ca.crt", token=token)


def test_a_role_in_a_namespace_is_for_that_namespace(api):
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


def test_events_that_the_api_server_refuses_are_counted_and_disturb_nobody(api):
    """The account of this stasisd may not create any."""
    until(lambda: with_token(api, "ann-token").ask("POST", "/checkpoint/default/counters/count").code == 200)
    scraper = with_token(api, "prometheus-token")
    until(lambda: re.search(r"^stasis_events_dropped_total [1-9]", scraper.get("/metrics").text, re.MULTILINE))
    assert "stasis_events_written_total 0\n" in scraper.get("/metrics").text


def test_an_api_server_that_is_not_ours_lets_nobody_in(api, tmp_path):
    make_authority(tmp_path, "ca")
    port = free_port()
    server = [word for word in api.bed.shim_options if str(word).startswith("https://")][0]
    options = ["--api-listen", f"127.0.0.1:{port}", "--api-server", server, "--api-server-ca",
               tmp_path / "ca.crt", "--api-server-token-file", api.folder / "agent-token"]
    with Testbed(shim_options=options):
        client = Agent(f"http://127.0.0.1:{port}", token="admin-token")
        assert client.get("/v1/checkpoints").code == 503
        assert client.get("/healthz").code == 200


@pytest.mark.parametrize("audience, code", [("https://test", 200), ("stasis", 401)])
def test_tokens_have_to_be_for_a_configured_audience(api, audience, code):
    """The API server's own is its service account issuer; tokens of its file are for that alone."""
    port = free_port()
    options = ["--api-listen", f"127.0.0.1:{port}", "--api-server", api.server.url, "--api-server-ca",
               api.folder / "ca.crt", "--api-server-token-file", api.folder / "agent-token",
               "--api-token-audience", audience]
    with Testbed(shim_options=options):
        assert Agent(f"http://127.0.0.1:{port}", token="admin-token").get("/v1/running").code == code


@pytest.fixture(scope="module")
def kubectl(api):
    """Runs kubectl checkpoint as a user, in a cluster whose node "n1" is the testbed. The agent stands there for
    its kubelet, whose path it has."""
    node_ip = f"10.213.{api.bed.number}.1"
    server = api.server
    server.create("/api/v1/nodes", metadata={"name": "n1"}, status={
        "addresses": [{"type": "InternalIP", "address": node_ip}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": api.port}}})
    server.create("/api/v1/namespaces/default/pods", metadata={"name": "counters"},
                  spec={"nodeName": "n1", "containers": [{"name": "count", "image": "busybox"}]})
    server.create("/api/v1/namespaces/default/pods/counters/ephemeralcontainers", "PATCH",
                  "application/strategic-merge-patch+json", spec={
                      "ephemeralContainers": [{"name": "debugger", "image": "busybox"}]})
    server.create("/api/v1/namespaces/default/pods/counters/status", "PATCH",
                  "application/merge-patch+json", status={
                      "hostIP": node_ip, "hostIPs": [{"ip": node_ip}], "containerStatuses": [{
                          "name": "count", "image": "busybox", "imageID": "", "ready": True,
                          "restartCount": 0, "state": {"running": {}}}], "ephemeralContainerStatuses": [{
                              "name": "debugger", "image": "busybox", "imageID": "", "ready": False,
                              "restartCount": 0, "state": {"running": {}}}]})

    def run(user, *words, code=0):
        config = api.folder / f"{user}.kubeconfig"
        config.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": server.url, "certificate-authority": str(api.folder / "ca.crt")}}],
            "users": [{"name": "u", "user": {"token": f"{user}-token"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}))
        done = subprocess.run([BIN / "kubectl-checkpoint", *map(str, words)], capture_output=True, text=True,
                              env={**os.environ, "KUBECONFIG": str(config),
                                   "KUBECTL": str(PROGRAMS[-1].parent / "kubectl")}, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    return lambda user, *words, code=0: run(
        user, *words, *([] if "--help" in words else ["--agent-port", api.port]), code=code)


def test_kubectl_checkpoint_by_the_agent(api, kubectl, tmp_path):
    archive = tmp_path / "count.tar"
    (made,) = json.loads(kubectl("ann", "counters", "-o", "json", "--output", archive))["items"]
    assert (made["container"], made["node"]) == ("count", "n1")
    stasis("verify", archive)
    assert f"checkpoint/{made['name']}\n" in kubectl("ann", "list", "-o", "name")
    assert "count" in kubectl("ann", "inspect", made["name"])
    assert "true" in kubectl("ann", "check", "counters").splitlines()[1]
    assert "may not delete" in kubectl("ann", "delete", made["name"], code=1)
    assert "deleted" in kubectl("admin", "delete", made["name"])
    assert "no node has" in kubectl("admin", "inspect", made["name"], code=1)


def test_kubectl_checkpoint_pushes_an_image_where_the_node_may(api, kubectl):
    image = f"{api.registry}/saved/default/count:1"
    (made,) = json.loads(kubectl("ann", "counters", "-o", "json", "--image", image))["items"]
    assert made["image"] == image and made["digest"].startswith("sha256:")
    manifest = Rest(f"http://{api.registry}").get("/v2/saved/default/count/manifests/1",
                                                  Accept="application/vnd.oci.image.manifest.v1+json")
    assert manifest.code == 200 and made["digest"] == manifest.headers["Docker-Content-Digest"]
    for elsewhere in (f"{api.registry}/saved/other/count:1", "registry.example/saved/default/count:1"):
        said = kubectl("ann", "counters", "--image", elsewhere, code=3)
        assert "checkpoint-counters_default-count-" in said and "may not be pushed to " + elsewhere in said


def test_kubectl_checkpoint_shows_what_it_made_though_it_cannot_be_saved(kubectl, tmp_path):
    (tmp_path / "there.tar").write_text("mine")
    said = kubectl("ann", "counters", "--output", tmp_path / "there.tar", code=3)
    assert said.startswith("NAME") and "File exists" in said and (tmp_path / "there.tar").read_text() == "mine"


def test_kubectl_checkpoint_waits_no_longer_than_it_is_told(api, kubectl):
    api.server.create("/api/v1/namespaces/default/pods", metadata={"name": "late"},
                      spec={"containers": [{"name": "count", "image": "busybox"}]})
    assert "timed out" in kubectl("admin", "late", "--wait", "--timeout", "1s", code=4)
    assert "checkpoint-counters_default-count-" in kubectl("ann", "counters", "--timeout", "5m")
    stasisd = api.bed.services["stasisd"]
    stasisd.send_signal(signal.SIGSTOP)
    try:
        assert "no answer within 1 s" in kubectl("ann", "counters", "--via", "agent", "--timeout", "1s", code=4)
        assert "node n1: no answer within 1 s" in kubectl("ann", "list", "--timeout", "1s", code=4)
    finally:
        stasisd.send_signal(signal.SIGCONT)


def test_without_the_right_to_list_nodes_those_of_the_pods_are_asked(api, kubectl):
    api.server.allow("dora", "maker", "default")
    api.server.allow("dora", "pods", "default")
    said = kubectl("dora", "list", "-o", "wide")
    assert said.startswith("NAME")


def test_kubectl_checkpoint_by_the_kubelet(kubectl):
    out = kubectl("admin", "counters", "-c", "count", "--via", "kubelet", "-o", "wide")
    assert out.startswith("NAME") and "checkpoint-counters_default-count-" in out
    assert "(Forbidden)" in kubectl("ann", "counters", "--via", "kubelet", code=1)


COMPLETE = """
. /usr/share/bash-completion/bash_completion
. <(kubectl completion bash)
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMP_KEY=9
read -ra COMP_WORDS <<<"$1"
[[ $1 != *' ' ]] || COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
__start_kubectl
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not os.path.exists("/usr/share/bash-completion/bash_completion"), reason="no bash-completion")
@pytest.mark.parametrize("line, candidates", [
    ("kubectl checkpoint ", {"list", "inspect", "delete", "check", "counters"}), ("kubectl checkpoint in", {"inspect"}),
    ("kubectl checkpoint check cou", {"counters"}), ("kubectl checkpoint counters -c ", {"count"}),
    ("kubectl checkpoint counters --im", {"--image"}), ("kubectl checkpoint list -o y", {"yaml"})])
def test_bash_completes_the_words_of_kubectl_checkpoint(api, kubectl, line, candidates):
    kubectl("ann", "--help")
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", line], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "KUBECONFIG": str(api.folder / "ann.kubeconfig"),
             "PATH": f"{PROGRAMS[-1].parent}:{BIN}:{ROOT}/cmd/kubectl-checkpoint:{os.environ['PATH']}"})
    found = set(done.stdout.split())
    assert candidates <= found, done.stderr
    assert all(word.startswith(line.rpartition(" ")[2]) for word in found)


def test_kubectl_checkpoint_takes_an_ephemeral_container_by_its_name(kubectl):
    (made,) = json.loads(kubectl("ann", "counters", "-c", "debugger", "-o", "json"))["items"]
    assert made["container"] == "debugger"
    kubectl("admin", "delete", made["name"])


def test_kubectl_checkpoint_compresses_and_tells_what_it_came_to(kubectl):
    (made,) = json.loads(kubectl("ann", "counters", "-c", "count", "--compress", "zstd:1", "-o", "json"))["items"]
    assert made["compression"]["ratio"] > 1 and made["sizeBytes"] < made["compression"]["plainBytes"]
    kubectl("admin", "delete", made["name"])
    assert "a level over 9" in kubectl("ann", "counters", "--compress", "zstd:19", code=1)
    assert "--compress" in kubectl("ann", "counters", "--compress", "zstd", "--via", "kubelet", code=2)


def test_kubectl_checkpoint_says_what_is_wrong(kubectl):
    assert "(NotFound)" in kubectl("admin", "nobody", code=1)
    assert "no container none" in kubectl("admin", "counters", "-c", "none", code=1)
    assert "(Forbidden)" in kubectl("ben", "counters", code=1)
    assert "json" in kubectl("ann", "counters", "-o", "xml", code=2)
