"""The REST API of a stasisd: certificates for it, and requests to it."""

import json
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass

from e2e.paths import ROOT

DOCUMENT = json.loads((ROOT / "kubelet-api" / "openapi.json").read_text())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def openssl(folder, *words):
    subprocess.run(["openssl", *map(str, words)], cwd=folder, check=True, capture_output=True)


def make_authority(folder, name="ca"):
    openssl(folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}", "-days", 2)


def make_certificate(folder, name, subject, authority="ca", addresses=("127.0.0.1",)):
    """NAME.crt and NAME.key, good for servers at `addresses` and for clients."""
    (folder / f"{name}.ext").write_text(
        f"subjectAltName={','.join('IP:' + one for one in addresses)}\nextendedKeyUsage=serverAuth,clientAuth\n")
    openssl(folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.crt", "-CAkey",
            f"{authority}.key", "-CAcreateserial", "-out", f"{name}.crt", "-days", 2, "-extfile",
            f"{name}.ext")


@dataclass
class Answer:
    code: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def text(self):
        return self.body.decode()


class Rest:
    """A client of one server; `certificate` is (file, key), `token` a bearer token."""

    def __init__(self, url, ca=None, certificate=None, token=None):
        self.url = url
        self.token = token
        self.tls = ssl.create_default_context(cafile=ca) if ca else None
        if certificate:
            self.tls.load_cert_chain(*certificate)

    def ask(self, method, path, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, context=self.tls, timeout=120) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as answer:
            return Answer(answer.code, dict(answer.headers), answer.read())

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)


def response_of(method, template, code):
    """What the document says of an answer."""
    response = DOCUMENT["paths"][template][method.lower()]["responses"][str(code)]
    name = response.get("$ref", "").rpartition("/")[2]
    return DOCUMENT["components"]["responses"][name] if name else response


def schema_of(method, template, code, media_type):
    """The document's schema of an answer of this type."""
    content = response_of(method, template, code)["content"]
    return {**content[media_type]["schema"], "components": DOCUMENT["components"]}


class Agent(Rest):
    """A client of an agent, all of whose answers have to be in its document."""

    def ask(self, method, path, **headers):
        answer = super().ask(method, path, **headers)
        segments = path.partition("?")[0].split("/")
        fits = lambda template: len(template) == len(segments) and all(
            one == other or one.startswith("{") for one, other in zip(template, segments))
        templates = [of for of in DOCUMENT["paths"] if fits(of.split("/"))]
        operations = DOCUMENT["paths"][templates[0]] if templates else {}
        of = "get" if method == "HEAD" else method.lower()
        if of not in operations:
            assert answer.code in (401, 403, 405 if operations else 404), (method, path, answer)
            return answer
        described = response_of(of, templates[0], answer.code)
        if "content" in described and method != "HEAD":
            assert answer.headers["Content-Type"].partition(";")[0] in described["content"], answer
        return answer
