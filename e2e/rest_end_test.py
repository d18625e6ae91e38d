"""What is under way in the REST API when nobody waits for it any more: its client goes, or the agent ends."""

import io
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e.paths import PLACEHOLDER, STASISD
from e2e.rest_test import api, counter, make, stasisd  # the first two are fixtures
from e2e.testbed.cri import Cri
from e2e.testbed.rest import Rest, free_port
from e2e.wait import until

ENDLESS = 512 << 30  # bytes: minutes to read, and no space, as they are never written


def endless(archive):
    """The same checkpoint with another member, of zeros, that is to be compared first."""
    made = archive.with_name(archive.name.replace(".tar", "9.tar"))
    with tarfile.open(archive) as old, tarfile.open(made, "w", format=tarfile.PAX_FORMAT) as new:
        for member in old.getmembers():
            content = old.extractfile(member).read() if member.isreg() else b""
            if member.name == "stasis-manifest.json":
                manifest = json.loads(content)
                manifest["members"].insert(0, {"name": "checkpoint/pages-99.img", "size": ENDLESS, "sha256": "0" * 64})
                content = json.dumps(manifest).encode()
                member.size = len(content)
            new.addfile(member, io.BytesIO(content))
        large = tarfile.TarInfo("checkpoint/pages-99.img")
        large.size = ENDLESS
        new.addfile(large)
        new.fileobj.seek(ENDLESS, os.SEEK_CUR)
        new.offset += ENDLESS
    return made


def has_open(process, path):
    for fd in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            if os.readlink(fd) == str(path):
                return True
        except FileNotFoundError:  # closed meanwhile
            pass
    return False


def test_a_verification_ends_with_its_client(api, counter):
    archive = endless(make(api))
    process = api.bed.services["stasisd"]
    context = ssl.create_default_context(cafile=api.folder / "ca.crt")
    context.load_cert_chain(api.folder / "admin.crt", api.folder / "admin.key")
    with socket.create_connection(("127.0.0.1", api.port)) as plain, \
            context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
        client.sendall(f"GET /v1/namespaces/default/checkpoints/{archive.name}/verify HTTP/1.1\r\n\r\n".encode())
        until(lambda: has_open(process, archive), what="the verification")
    until(lambda: not has_open(process, archive), what="its end")


def test_what_is_under_way_at_the_end_of_the_agent_is_given_up(api, counter, tmp_path):
    """A verification that takes minutes, and a push to a registry that never answers."""
    whole = make(api)
    archive = endless(whole)
    port = free_port()
    client = Rest(f"https://127.0.0.1:{port}", api.folder / "ca.crt", (api.folder / "admin.crt", api.folder / "admin.key"))
    of = "/v1/namespaces/default/checkpoints"
    with socket.create_server(("127.0.0.1", 0)) as registry, ThreadPoolExecutor() as pool:
        to = f"127.0.0.1:{registry.getsockname()[1]}"
        options = ["--api-listen", f"127.0.0.1:{port}", "--api-tls-cert", api.folder / "server.crt", "--api-tls-key",
                   api.folder / "server.key", "--api-client-ca", api.folder / "ca.crt", "--checkpoint-dir",
                   api.checkpoints, "--push-to", f"http://{to}/", "--shutdown-grace", 1]
        with stasisd(api, tmp_path, *options) as log:
            until(lambda: "info the REST API is served" in log(), what="the API")
            verified = pool.submit(client.get, f"{of}/{archive.name}/verify")
            pushed = pool.submit(client.ask, "POST", f"{of}/{whole.name}/image?reference={to}/a:b")
            until(lambda: select.select([registry], [], [], 0)[0], what="the push")
            until(lambda: has_open(log.process, archive), what="the verification")
        for answer in (verified.result(60), pushed.result(60)):
            assert answer.code == 409 and answer.json["reason"] == "Conflict", answer



def test_the_end_of_the_agent_waits_for_no_runtime_that_hangs(api, counter, tmp_path):
    """One grace for the REST API and the kubelet's socket: who waits at either is told of the end."""
    port = free_port()
    client = Rest(f"https://127.0.0.1:{port}", api.folder / "ca.crt", (api.folder / "admin.crt", api.folder / "admin.key"))
    cri = Cri(tmp_path / "sock", api.bed.cri.cgroup, tmp_path)
    (container,) = api.bed.cri.call("ListContainers")["containers"]
    containerd = api.bed.services["containerd"]
    agent = subprocess.Popen(list(map(str, [
        STASISD, "--listen", cri.endpoint, "--runtime-endpoint", api.bed.runtime.endpoint, "--state-dir", tmp_path,
        "--placeholder", PLACEHOLDER, "--api-listen", f"127.0.0.1:{port}", "--api-tls-cert", api.folder / "server.crt",
        "--api-tls-key", api.folder / "server.key", "--api-client-ca", api.folder / "ca.crt", "--shutdown-grace", 1])))
    try:
        until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, what="the API")
        containerd.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor() as pool:
            by_rest = pool.submit(client.ask, "POST", "/checkpoint/default/counters/count")
            by_cri = pool.submit(cri.call, "CheckpointContainer", container_id=container["id"], location=f"{tmp_path}/a")
            time.sleep(0.5)  # both wait for the runtime by now; were they not there yet, they would be refused
            agent.terminate()
            assert agent.wait(30) == 0
            assert by_cri.exception(30).code in ("Cancelled", "Unavailable")
            assert isinstance(by_rest.exception(30), OSError) or by_rest.result().code == 500
    finally:
        containerd.send_signal(signal.SIGCONT)
        agent.kill()
        agent.wait()
