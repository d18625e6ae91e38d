"""The REST API: what it answers, to whom, and how it stands strange clients. A client CA stands for the
cluster; e2e/rest_cluster_test.py has an API server."""

import http.client
import shutil
import signal
import socket
import ssl
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest

from e2e.paths import PLACEHOLDER, STASISD
from e2e.testbed.cri import Pod
from e2e.testbed.rest import DOCUMENT, Agent, Rest, free_port, make_authority, make_certificate, schema_of
from e2e.testbed.testbed import Testbed
from e2e.wait import until


ZSTD = b"\x28\xb5\x2f\xfd"  # RFC 8878, 3.1.1


class Api:
    """A testbed whose stasisd serves the REST API, and clients of it."""

    def __init__(self, folder, bed, port):
        self.folder, self.bed, self.port = folder, bed, port
        self.url = f"https://127.0.0.1:{port}"
        self.checkpoints = folder / "checkpoints"
        self.admin = self.client("admin")

    def client(self, name=None):
        certificate = (self.folder / f"{name}.crt", self.folder / f"{name}.key") if name else None
        return Agent(self.url, self.folder / "ca.crt", certificate)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rest")
    make_authority(folder)
    make_authority(folder, "stranger")
    make_certificate(folder, "server", "/CN=stasisd")
    make_certificate(folder, "admin", "/O=stasis:admins/CN=ada")
    make_certificate(folder, "node", "/O=system:nodes/CN=system:node:n1")
    make_certificate(folder, "forged", "/O=stasis:admins/CN=eve", "stranger")
    port = free_port()
    options = ["--api-listen", f"127.0.0.1:{port}", "--api-tls-cert", folder / "server.crt",
               "--api-tls-key", folder / "server.key", "--api-client-ca", folder / "ca.crt",
               "--checkpoint-dir", folder / "checkpoints", "--api-user-checkpoints", 1]
    with Testbed(shim_options=options) as bed:
        yield Api(folder, bed, port)


COUNT = "i=0; while :; do i=$((i + 1)); sleep 0.1; done"


def run_counter(bed, pod_name, namespace="default", more=(), command=COUNT, **pod):
    """A pod with the container "count", and `more` like it."""
    config = bed.cri.pod_config(pod_name) | pod
    config["metadata"]["namespace"] = namespace
    config["labels"]["io.kubernetes.pod.namespace"] = namespace
    pod = bed.cri.call("RunPodSandbox", config=config)["pod_sandbox_id"]
    made = Pod(pod, config, "")
    for name in ("count", *more):
        bed.cri.run(made, name, bed.image("busybox"),
                    command=["sh", "-c", command],
                    labels={"io.kubernetes.container.name": name, "io.kubernetes.pod.name": pod_name,
                            "io.kubernetes.pod.namespace": namespace})
    return made


@pytest.fixture
def counter(api):
    pod = run_counter(api.bed, "counters")
    yield pod
    api.bed.runtime.remove_pod(pod.id)
    for archive in api.checkpoints.glob("*"):
        archive.unlink()


def make(api):
    answer = api.admin.ask("POST", "/checkpoint/default/counters/count")
    assert answer.code == 200, answer.text
    (path,) = answer.json["items"]
    return Path(path)


def check(answer, method, template):
    media_type = answer.headers["Content-Type"].split(";")[0]
    schema = schema_of(method, template, answer.code, media_type)
    if media_type == "application/json":
        jsonschema.validate(answer.json, schema)
    return answer


def test_a_checkpoint_as_the_kubelet_makes_one(api, counter):
    path = make(api)
    assert path.parent == api.checkpoints and path.name.startswith("checkpoint-counters_default-count-")
    assert api.checkpoints.stat().st_mode & 0o777 == 0o700
    with tarfile.open(path) as tar:
        assert "checkpoint/inventory.img" in tar.getnames()
    for path, code, text in [("/checkpoint/default/counters/none", 404, "none"),
                             ("/checkpoint/default/none/count", 404, "no containers"),
                             ("/checkpoint/default/counters/count?timeout=soon", 404, "timeout")]:
        answer = check(api.admin.ask("POST", path), "POST",
                       "/checkpoint/{namespace}/{pod}/{container}")
        assert (answer.code, text in answer.text) == (code, True), answer.text


def compression_of(answer):
    """Of a checkpoint that was made: what the answer says, after a look at the archive itself."""
    template = "/checkpoint/{namespace}/{pod}/{container}"
    assert check(answer, "POST", template).code == 200, answer.text
    path, report = Path(answer.json["items"][0]), answer.json["report"]
    assert report["sizeBytes"] == path.stat().st_size
    assert ("compression" in report) == (path.read_bytes()[:4] == ZSTD)
    path.unlink()  # the next one may be of the same second, and of this name
    return report.get("compression")


def test_a_client_says_how_its_archive_is_compressed(api, counter):
    of = "/checkpoint/default/counters/count"
    made = compression_of(api.admin.ask("POST", of + "?compress=zstd%3A1"))
    assert made["ratio"] > 1 and made["plainBytes"] > 0 and made["cpuSeconds"] > 0
    for wish in ("lz4", "zstd:19", ""):
        answer = check(api.admin.ask("POST", f"{of}?compress={wish}"), "POST",
                       "/checkpoint/{namespace}/{pod}/{container}")
        assert answer.code == 400 and "zstd" in answer.text, answer.text


@pytest.mark.parametrize("annotation, compressed", [("zstd:2", True), ("none", False), ("zstd:19", None)])
def test_a_pod_says_how_its_archives_are_compressed_unless_a_client_does(api, annotation, compressed):
    pod = run_counter(api.bed, "annotated", annotations={"stasis.dev/compress": annotation})
    try:
        of = "/checkpoint/default/annotated/count"
        answer = api.admin.ask("POST", of)
        if compressed is None:
            assert answer.code == 500 and "annotation stasis.dev/compress" in answer.text
        else:
            assert (compression_of(answer) is not None) == compressed
        assert compression_of(api.admin.ask("POST", of + "?compress=none")) is None
    finally:
        api.bed.runtime.remove_pod(pod.id)


def test_answers_are_those_of_the_document(api, counter):
    name = make(api).name
    of = "/v1/namespaces/{namespace}/checkpoints"
    get = lambda path, template: check(api.admin.get(path), "GET", template)
    listed = get("/v1/namespaces/default/checkpoints", of).json["items"]
    assert [(one["name"], one["pod"], one["container"]) for one in listed] == [
        (name, "counters", "count")]
    assert get("/v1/checkpoints", "/v1/checkpoints").json["items"] == listed
    base = f"/v1/namespaces/default/checkpoints/{name}"
    inspected = get(base, of + "/{name}").json
    assert inspected["pod"]["namespace"] == "default" and inspected["processes"]
    assert get(base + "/verify", of + "/{name}/verify").json["ok"]
    checked = get("/v1/namespaces/default/pods/counters/containers/count/check",
                  "/v1/namespaces/{namespace}/pods/{pod}/containers/{container}/check").json
    assert checked["canBeCheckpointed"]
    assert get("/v1/running", "/v1/running").json == {"items": []}
    assert get("/v1/namespaces/other/checkpoints/none", of + "/{name}").code == 404
    post = lambda query: check(api.admin.ask("POST", base + "/image" + query), "POST", of + "/{name}/image")
    assert (post("").code, post("?reference=a/b:c").code) == (400, 403)
    missing = api.admin.ask("DELETE", "/v1/namespaces/default/running/99")
    assert check(missing, "DELETE", "/v1/namespaces/{namespace}/running/{number}").code == 404
    assert check(api.admin.ask("DELETE", base), "DELETE", of + "/{name}").code == 200
    assert get(base, of + "/{name}").code == 404
    assert api.admin.get("/openapi/v3").json == DOCUMENT


def test_downloads_in_parts(api, counter):
    path = make(api)
    whole = path.read_bytes()
    url = f"/v1/namespaces/default/checkpoints/{path.name}/archive"
    answer = api.admin.get(url)
    assert (answer.code, answer.body) == (200, whole)
    part = api.admin.get(url, Range="bytes=100-299", If_Range=answer.headers["ETag"])
    assert (part.code, part.body) == (206, whole[100:300])
    assert part.headers["Content-Range"] == f"bytes 100-299/{len(whole)}"
    assert api.admin.get(url, Range="bytes=-50").body == whole[-50:]
    assert api.admin.get(url, Range="bytes=5-", If_Range='"another"').code == 200
    assert api.admin.get(url, Range=f"bytes={len(whole)}-").code == 416


def test_another_namespace_is_not_reached_by_a_name(api, counter):
    path = make(api)
    for pod_namespace in ("other", "default-count"):
        for method in ("GET", "DELETE"):
            answer = api.admin.ask(method, f"/v1/namespaces/{pod_namespace}/checkpoints/{path.name}")
            assert answer.code == 404
    assert path.exists()


@pytest.mark.parametrize("name", [
    "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "checkpoint-a_b-%2e%2e%2fx.tar", "%00", "lock",
    "checkpoint-a_b-link.tar", "checkpoint-a_b-fifo.tar", "checkpoint-a_b-garbage.tar"])
def test_hostile_names_lead_nowhere(api, counter, name):
    make(api)
    (api.checkpoints / "checkpoint-a_b-link.tar").symlink_to("/etc/passwd")
    (api.checkpoints / "checkpoint-a_b-garbage.tar").write_bytes(b"x" * 257 + b"ustar" + b"y" * 999)
    subprocess.run(["mkfifo", api.checkpoints / "checkpoint-a_b-fifo.tar"], check=True)
    for what in ("", "/archive", "/verify"):
        assert api.admin.get(f"/v1/namespaces/b/checkpoints/{name}{what}").code in (400, 404)
    assert len(api.admin.get("/v1/checkpoints").json["items"]) == 1


def test_who_is_let_in(api):
    for path in ("/metrics", "/v1/checkpoints", "/openapi/v3", "/v1/namespaces/a/checkpoints/checkpoint-a_b-c.tar"):
        assert api.client().get(path).code == 401
        assert api.client("node").get(path).code == 403
    assert api.client().get("/healthz").body == api.client().get("/readyz").body == b"ok"
    assert api.client().ask("POST", "/checkpoint/default/a/b").code == 401
    assert Agent(api.url, api.folder / "ca.crt", token="abc").get("/metrics").code == 401
    assert api.admin.get("/metrics", Origin="https://elsewhere.example").code == 403
    with pytest.raises(OSError):
        api.client("forged").get("/healthz")


@pytest.mark.parametrize("method, path, code", [
    ("TRACE", "/", 404), ("OPTIONS", "/v1/checkpoints", 405), ("BREW", "/metrics", 405),
    ("GET", "/nothing", 404), ("POST", "/healthz", 405), ("GET", "/checkpoint/a/b/c", 405),
    ("POST", "/checkpoint/UPPER/a/b", 404), ("GET", "/v1/namespaces/a/checkpoints/not-a-name", 404),
    ("PUT", "/v1/namespaces/a/checkpoints/x", 405), ("GET", "/healthz/more", 404)])
def test_strangers_learn_of_nothing(api, method, path, code):
    assert api.client().ask(method, path).code == 401
    answer = api.admin.ask(method, path)
    assert answer.code == code and ("Allow" in answer.headers) == (code == 405)
    assert b"certificate" not in answer.body  # of the request: nothing is sent back


def test_one_user_has_so_many_checkpoints_under_way(api):
    """Two by the same user, of whom one is allowed, while the runtime does not answer."""
    containerd = api.bed.services["containerd"]
    containerd.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            both = [pool.submit(api.admin.ask, "POST", "/checkpoint/default/none/none") for _ in range(2)]
            until(lambda: any(one.done() for one in both))
            containerd.send_signal(signal.SIGCONT)
            answers_to = {one.result(60).code: one.result() for one in both}
    finally:
        containerd.send_signal(signal.SIGCONT)
    assert set(answers_to) == {429, 404}
    assert answers_to[429].headers["Retry-After"] and "--api-user-checkpoints" in answers_to[429].text


def test_tls_is_1_3(api):
    context = ssl.create_default_context(cafile=api.folder / "ca.crt")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", api.port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_prometheus_reads_the_metrics(api, counter):
    make(api)
    api.admin.ask("POST", "/checkpoint/default/counters/none")
    text = api.admin.get("/metrics").body
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    values = dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if line[0] != "#")
    assert int(values["stasis_checkpoints_total"]) > 0
    assert float(values["stasis_checkpoint_frozen_seconds_total"]) > 0
    assert int(values["stasis_checkpoint_bytes_total"]) > 0
    assert int(values["stasis_forwarded_calls_total"]) > 0


def raw(api, data, *, certificate="admin"):
    """The first bytes that come back for what is no decent request."""
    context = ssl.create_default_context(cafile=api.folder / "ca.crt")
    context.load_cert_chain(api.folder / f"{certificate}.crt", api.folder / f"{certificate}.key")
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
            tls.sendall(data)
            return tls.recv(64)


@pytest.mark.parametrize("data, code", [
    (b"GET / HTTP/1.1\r\nX: " + b"x" * 60_000 + b"\r\n\r\n", b"431"),
    (b"POST /x HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
    (b"POST /x HTTP/1.1\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
    (b"rubbish\r\n\r\n", b"400"),
    (b"GET http://[ HTTP/1.1\r\n\r\n", b"400"),
    (b"GET /%zz HTTP/1.1\r\n\r\n", b"400"),
    (b"GET /healthz HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", b"417"),
    (b"BREW /healthz HTTP/1.1\r\n\r\n", b"405"),
], ids=["header", "body", "smuggling", "rubbish", "no path", "escape", "expect", "method"])
def test_strange_requests(api, data, code):
    assert raw(api, data).split(b" ")[1] == code
    assert api.client().get("/healthz").code == 200


def test_connections_that_say_nothing_keep_nobody_out(api):
    idle = [socket.create_connection(("127.0.0.1", api.port)) for _ in range(60)]
    # Those beyond the limit of one address are closed at once, the others are given a time.
    closed = until(lambda: [one for one in idle if one.fileno() >= 0 and is_closed(one)], what="the limit")
    assert closed
    for one in idle:
        one.close()
    until(lambda: answers(api), what="an answer after they are gone")


def is_closed(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def answers(api):
    try:
        return api.client().get("/healthz").code == 200
    except (OSError, http.client.HTTPException):
        return False


@contextmanager
def stasisd(api, folder, *options):
    """Another stasisd, by a function that tells its log."""
    log, endpoint = folder / "log", f"unix://{folder}/sock"
    with open(log, "wb") as output:
        running = subprocess.Popen(
            [STASISD, "--listen", endpoint, "--runtime-endpoint", api.bed.runtime.endpoint, "--state-dir", folder,
             "--placeholder", PLACEHOLDER, *map(str, options)], stderr=output)
    try:
        told = lambda: log.read_text(errors="replace")
        told.process = running
        yield told
        # Whatever becomes of the API: the kubelet has its runtime.
        assert subprocess.run([STASISD, "--probe", "--listen", endpoint], timeout=60, check=False).returncode == 0
        assert running.poll() is None
    finally:
        running.terminate()
        assert running.wait(60) == 0


@pytest.mark.parametrize("options, says", [
    (["--api-listen=0.0.0.0:0"], "only with TLS"), (["--api-listen=:0"], "only with TLS"),
    (["--api-listen=127.0.0.1:0", "--api-client-ca=/ca.crt"], "needs TLS"),
    (["--api-listen=127.0.0.1:0", "--push-to=registry.example"], "is not REGISTRY/ or REGISTRY/FOLDER/"),
    (["--api-listen=127.0.0.1:0", "--api-server=http://127.0.0.1:1"], "not an https")])
def test_what_would_serve_too_much_is_not_served(api, tmp_path, options, says):
    with stasisd(api, tmp_path, *options) as log:
        until(lambda: "the REST API is not served" in log(), what="the refusal")
        assert says in log() and "info the REST API is served" not in log()


def test_an_api_that_cannot_start_is_tried_again_and_the_kubelet_served_meanwhile(api, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        certificate = tmp_path / "tls.crt"
        certificate.write_text("not yet one")
        with stasisd(api, tmp_path, f"--api-listen=127.0.0.1:{port}", f"--api-tls-cert={certificate}",
                     f"--api-tls-key={api.folder}/server.key") as log:
            until(lambda: "not served" in log(), what="the bad certificate")
            shutil.copy(api.folder / "server.crt", certificate)
            until(lambda: "Address already in use" in log(), 30, what="the port that is taken")
            other.close()
            until(lambda: "info the REST API is served" in log(), 30, what="the API")
            assert Rest(f"https://127.0.0.1:{port}", api.folder / "ca.crt").get("/healthz").code == 200


def test_without_an_address_both_families_are_served(api, tmp_path):
    if not Path("/proc/net/if_inet6").exists() or "00000001" not in Path("/proc/net/if_inet6").read_text():
        pytest.skip("there is no ::1")
    make_certificate(api.folder, "both", "/CN=stasisd", addresses=("127.0.0.1", "::1"))
    port = free_port()
    with stasisd(api, tmp_path, f"--api-listen=:{port}", f"--api-tls-cert={api.folder}/both.crt",
                 f"--api-tls-key={api.folder}/both.key") as log:
        until(lambda: "info the REST API is served" in log(), what="the API")
        for host in ("127.0.0.1", "[::1]"):
            assert Rest(f"https://{host}:{port}", api.folder / "ca.crt").get("/healthz").code == 200


def test_nobody_is_known_without_api_server_and_authority(tmp_path):
    port = free_port()
    with Testbed(shim_options=["--api-listen", f"127.0.0.1:{port}"]):
        client = Agent(f"http://127.0.0.1:{port}", token="abc")
        assert client.get("/healthz").code == client.get("/readyz").code == 200
        refused = client.get("/metrics")
        assert refused.code == 403 and "--api-server" in refused.json["message"]
        assert client.ask("POST", "/checkpoint/a/b/c").code == 403


@pytest.mark.parametrize("missing", ["--api-server-ca", "--api-server-token-file"])
def test_own_files_that_are_missing_are_no_strangers_business(api, tmp_path, missing):
    (tmp_path / "there").write_text("token")
    port = free_port()
    files = {"--api-server-ca": api.folder / "ca.crt", "--api-server-token-file": tmp_path / "there",
             missing: tmp_path / "secret-place"}
    with Testbed(shim_options=["--api-listen", f"127.0.0.1:{port}", "--api-server", "https://127.0.0.1:1",
                               *(word for pair in files.items() for word in pair)]):
        refused = Agent(f"http://127.0.0.1:{port}", token="abc").get("/metrics")
    assert refused.code == 503 and "its log" in refused.json["message"]
    assert not any(word in refused.text for word in ("secret-place", "127.0.0.1", "token-file"))


@pytest.fixture(scope="module")
def narrow(api):
    """A node for one checkpoint at a time, of a user who may have two, with a disk that is to stay all but empty."""
    port = free_port()
    options = ["--api-listen", f"127.0.0.1:{port}", "--api-tls-cert", api.folder / "server.crt",
               "--api-tls-key", api.folder / "server.key", "--api-client-ca", api.folder / "ca.crt",
               "--checkpoint-dir", api.folder / "narrow", "--api-user-checkpoints", 2,
               "--checkpoint-limit", 1, "--checkpoint-min-free", 99]
    with Testbed(shim_options=options) as bed:
        run_counter(bed, "counters")
        yield Api(api.folder, bed, port)


def test_a_disk_is_not_filled(api, narrow):
    answer = narrow.admin.ask("POST", "/checkpoint/default/counters/count")
    assert answer.code == 507 and answer.json["reason"] == "InsufficientStorage"
    assert "--checkpoint-min-free" in answer.json["message"]
    assert not list((api.folder / "narrow").iterdir())


def test_a_node_has_so_many_checkpoints_under_way(narrow):
    containerd = narrow.bed.services["containerd"]
    container = narrow.bed.cri.call("ListContainers")["containers"][0]["id"]
    ask = lambda: narrow.bed.cri.call("CheckpointContainer", container_id=container, location="/tmp/x/y")
    containerd.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            both = [pool.submit(ask) for _ in range(2)]
            until(lambda: any(one.done() for one in both))
            containerd.send_signal(signal.SIGCONT)
            errors = {one.exception(60).code: str(one.exception()) for one in both}
    finally:
        containerd.send_signal(signal.SIGCONT)
    assert "--checkpoint-limit" in errors["Unavailable"] and len(errors) == 2


@pytest.fixture
def large(api):
    """A container with so much memory that its checkpoint can be watched."""
    config = api.bed.cri.pod_config("large")
    made = Pod(api.bed.cri.call("RunPodSandbox", config=config)["pod_sandbox_id"], config, "")
    container = api.bed.cri.run(
        made, "count", api.bed.image("busybox"),
        command=["sh", "-c", "x=$(yes abcdefgh | head -c 500000000); touch /ready; "
                             "while :; do sleep 0.1; done"],
        labels={"io.kubernetes.container.name": "count", "io.kubernetes.pod.name": "large",
                "io.kubernetes.pod.namespace": "default"})
    until(lambda: api.bed.cri.exec(container, "ls", "/ready").code == 0, what="memory", every=0.2)
    yield container
    api.bed.runtime.remove_pod(made.id)


def test_a_checkpoint_is_watched_and_cancelled(api, large):
    with ThreadPoolExecutor() as pool:
        made = pool.submit(api.admin.ask, "POST", "/checkpoint/default/large/count")
        running = "/v1/namespaces/default/running"

        def under_way():
            assert not made.done(), made.result().text
            return api.admin.get(running).json["items"]

        (one,) = until(under_way)
        assert (one["pod"], one["container"], one["containerID"]) == ("large", "count", large)
        (one,) = until(lambda: [of for of in under_way() if of["doneBytes"] > 0])
        assert 0 <= one["percent"] <= 100 and one["totalBytes"] > 400_000_000
        assert api.admin.ask("DELETE", f"/v1/namespaces/other/running/{one['number']}").code == 404
        cancelled = check(api.admin.ask("DELETE", f"{running}/{one['number']}"), "DELETE",
                          "/v1/namespaces/{namespace}/running/{number}")
        assert cancelled.code == 202
        answer = made.result(60)
    assert answer.code == 500 and "failed" in answer.text
    assert api.admin.get(running).json["items"] == []
    assert not list(api.checkpoints.glob("*large*"))
    assert api.bed.cri.exec(large, "true").code == 0


def test_a_client_that_hangs_up_ends_its_checkpoint(api, large):
    context = ssl.create_default_context(cafile=api.folder / "ca.crt")
    context.load_cert_chain(api.folder / "admin.crt", api.folder / "admin.key")
    client = http.client.HTTPSConnection("127.0.0.1", api.port, context=context)
    client.request("POST", "/checkpoint/default/large/count")
    until(lambda: api.admin.get("/v1/running").json["items"])
    client.close()
    until(lambda: not api.admin.get("/v1/running").json["items"])
    assert not list(api.checkpoints.glob("*large*"))
    assert api.bed.cri.exec(large, "true").code == 0
