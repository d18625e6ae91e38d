"""Who may do what, for every operation of the REST API's own document: the rights that it names are needed, all of
them, in the namespace that is asked about, and no others."""

import shutil
import subprocess

import pytest

from e2e.rest_cluster_test import PROGRAMS, RBAC, ApiServer
from e2e.testbed.rest import DOCUMENT, Agent, free_port, make_authority, make_certificate
from e2e.testbed.testbed import Testbed
from e2e.wait import until

pytestmark = pytest.mark.skipif(not PROGRAMS or not shutil.which("etcd"),
                                reason="needs etcd and a kube-apiserver: ./dev cluster builds it")
VERBS = ["create", "list", "get", "delete"]
OPERATIONS = {one["operationId"]: (method.upper(), path, one)
              for path, of in DOCUMENT["paths"].items() for method, one in of.items() if method != "parameters"}
FOR_USERS = [name for name, (_, _, one) in OPERATIONS.items() if one.get("security") != []]
PLACES = {"namespace": "default", "pod": "nobody", "container": "none", "number": "7",
          "name": "checkpoint-nobody_default-none-1.tar"}


def rights(operation):
    return OPERATIONS[operation][2]["x-stasis-rights"]


def users():
    """For each operation one with its rights alone, and for each of its rights one with all others."""
    for operation in FOR_USERS:
        yield f"may-{operation.lower()}", operation, rights(operation)
        for missing in rights(operation):
            yield f"lacks-{missing}-{operation.lower()}", operation, [verb for verb in VERBS if verb != missing]


def path_of(operation, **places):
    return OPERATIONS[operation][1].format(**PLACES | places)


def rule(operation, verbs):
    path = OPERATIONS[operation][1]
    if path.startswith(("/v1/", "/checkpoint/")):
        return {"apiGroups": ["stasis.dev"], "resources": ["checkpoints"], "verbs": verbs}
    return {"nonResourceURLs": [path], "verbs": verbs}


def allow(server, user, operation, verbs, namespace):
    name = f"{user}-{namespace or 'all'}"
    server.create(f"{RBAC}/clusterroles", metadata={"name": name}, rules=[rule(operation, verbs)])
    server.allow(user, name, namespace)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """A function that makes a client with a token, or with a certificate."""
    folder = tmp_path_factory.mktemp("rights")
    make_authority(folder)
    make_certificate(folder, "server", "/CN=server")
    make_certificate(folder, "admin", "/O=system:masters/CN=root")
    make_authority(folder, "stranger")
    make_certificate(folder, "forged", "/O=system:masters/CN=root", "stranger")
    for user in ("nothing", *(f"may-{operation.lower()}" for operation in FOR_USERS)):
        make_certificate(folder, user, f"/CN={user}")
    running = []

    def start(name, command):
        with open(folder / f"{name}.log", "wb") as log:
            running.append(subprocess.Popen([str(word) for word in command], stdout=log, stderr=log))
        return running[-1]

    try:
        names = ["nothing", *(user for user, _, _ in users())]
        server = ApiServer(folder, start, "".join(
            f"{name}-token,{name},{number}\n" for number, name in enumerate(names, 10)))
        for user, operation, verbs in users():
            in_one = "{namespace}" in OPERATIONS[operation][1]
            allow(server, user, operation, verbs, "default" if in_one else None)
            if user.startswith("lacks-") and not in_one and "resources" in rule(operation, verbs):
                allow(server, user, operation, VERBS, "default")  # what is for all namespaces is more
        port = free_port()
        with Testbed(shim_options=[
                "--api-listen", f"127.0.0.1:{port}", "--api-tls-cert", folder / "server.crt", "--api-tls-key",
                folder / "server.key", "--api-client-ca", folder / "ca.crt", "--api-server", server.url, "--api-server-ca", folder / "ca.crt",
                "--api-server-token-file", folder / "agent-token", "--checkpoint-dir", folder / "checkpoints"]):
            def client(token=None, certificate=None):
                files = certificate and [folder / f"{certificate}.{kind}" for kind in ("crt", "key")]
                return Agent(f"https://127.0.0.1:{port}", folder / "ca.crt", files, token)

            yield client
    finally:
        for service in reversed(running):
            service.terminate()
            service.wait(30)


def methods(operation):
    method = OPERATIONS[operation][0]
    return [method, "HEAD"] if method == "GET" else [method]


@pytest.mark.parametrize("operation", FOR_USERS)
def test_who_has_the_rights_of_an_operation_may_do_it_and_nobody_else(agent, operation):
    for method in methods(operation):
        ask = lambda user=None, **places: agent(user and f"{user}-token").ask(method, path_of(operation, **places)).code
        # Kubernetes' own role system:discovery gives /openapi/* to everybody who is known.
        refused = 200 if operation == "openapi" else 403
        assert [ask(), ask("nobody"), ask("nothing")] == [401, 401, refused]
        assert agent().ask(method, path_of(operation), Authorization="Basic YTpi").code == 401
        for missing in rights(operation):
            assert ask(f"lacks-{missing}-{operation.lower()}") == refused, missing
        # The API server takes up new roles in a moment, and the agent remembers a refusal for ten seconds.
        who = f"may-{operation.lower()}"
        until(lambda: ask(who) not in (401, 403), what="the role", every=0.5)
        if "{namespace}" in OPERATIONS[operation][1]:
            assert ask(who, namespace="other") == 403


@pytest.mark.parametrize("operation", FOR_USERS)
def test_a_certificate_has_the_rights_of_its_user_and_one_of_another_authority_none(agent, operation):
    for method in methods(operation):
        ask = lambda user, **places: agent(certificate=user).ask(method, path_of(operation, **places)).code
        assert ask("nothing") == (200 if operation == "openapi" else 403)
        with pytest.raises(OSError):  # of the handshake: TLS has no other answer
            ask("forged")
        who = f"may-{operation.lower()}"
        until(lambda: ask(who) not in (401, 403), what="the role", every=0.5)
        if "{namespace}" in OPERATIONS[operation][1]:
            assert ask(who, namespace="other") == 403


@pytest.mark.parametrize("token", ["", " ", "x" * 20000, "may-check-token,nothing-token", "b.c.d"])
def test_what_is_no_token_of_anybody_opens_nothing(agent, token):
    for operation in FOR_USERS:
        for method in methods(operation):
            assert agent().ask(method, path_of(operation), Authorization=f"Bearer {token}").code == 401


def test_every_operation_is_for_anybody_or_names_its_rights():
    assert set(OPERATIONS) - set(FOR_USERS) == {"healthz", "readyz"}
    assert all(rights(operation) for operation in FOR_USERS)
