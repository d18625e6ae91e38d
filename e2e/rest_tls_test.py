"""TLS files that are renewed while the agent serves, as cert-manager, the kubelet and stasis-node hand them on."""

import http.client
import os
import ssl

import pytest

from e2e.rest_test import api, stasisd  # the first is a fixture
from e2e.testbed.rest import Rest, free_port, make_authority, make_certificate
from e2e.wait import until


class Served:
    """A stasisd with TLS files of its own."""

    def __init__(self, folder, port):
        self.folder, self.port = folder, port

    def replace(self, **files):
        """As stasis-node does: one after the other, each by a new file with its name."""
        for name, source in files.items():
            (self.folder / "new").write_bytes((self.folder / source).read_bytes())
            os.rename(self.folder / "new", self.folder / "served" / name)

    def certificate(self):
        """What a new connection is shown."""
        return ssl.get_server_certificate(("127.0.0.1", self.port)).strip()

    def text(self, name):
        return (self.folder / name).read_text().strip()

    def client(self, name):
        return Rest(f"https://127.0.0.1:{self.port}", self.folder / "ca.crt",
                    (self.folder / f"{name}.crt", self.folder / f"{name}.key"))


@pytest.fixture
def served(api, tmp_path):
    made = Served(tmp_path, free_port())
    make_authority(tmp_path)
    make_authority(tmp_path, "next")
    for name in ("first", "second"):
        make_certificate(tmp_path, name, "/CN=stasisd")
    make_certificate(tmp_path, "ada", "/O=stasis:admins/CN=ada")
    make_certificate(tmp_path, "bob", "/O=stasis:admins/CN=bob", "next")
    (tmp_path / "served").mkdir()
    made.replace(crt="first.crt", key="first.key", ca="ca.crt")
    of = tmp_path / "served"
    with stasisd(api, tmp_path, f"--api-listen=127.0.0.1:{made.port}", f"--api-tls-cert={of}/crt",
                 f"--api-tls-key={of}/key", f"--api-client-ca={of}/ca") as made.log:
        until(lambda: "info the REST API is served" in made.log(), what="the API")
        yield made


def test_a_renewed_certificate_is_shown_to_the_next_connection(served):
    tls = ssl.create_default_context(cafile=served.folder / "ca.crt")
    tls.load_cert_chain(served.folder / "ada.crt", served.folder / "ada.key")
    open_one = http.client.HTTPSConnection("127.0.0.1", served.port, context=tls, timeout=60)

    def answer():
        open_one.request("GET", "/v1/running")
        response = open_one.getresponse()
        response.read()
        return response.status

    assert answer() == 200 and served.certificate() == served.text("first.crt")
    served.replace(crt="second.crt")  # and not yet its key
    assert served.certificate() == served.text("first.crt")
    served.replace(key="second.key")
    assert served.certificate() == served.text("second.crt")
    assert answer() == 200  # on the connection that began before


def test_files_that_are_of_no_use_leave_the_old_ones_in_use(served):
    (served.folder / "rubbish").write_text("no certificate")
    for name, good in (("crt", "first.crt"), ("key", "first.key"), ("ca", "ca.crt")):
        served.replace(**{name: "rubbish"})
        assert served.certificate() == served.text("first.crt")
        assert served.client("ada").get("/v1/running").code == 200
        assert "the new TLS files cannot be used" in served.log()
        served.replace(**{name: good})


def test_a_renewed_authority_decides_whose_certificates_are_believed(served):
    assert served.client("ada").get("/v1/running").code == 200
    with pytest.raises(OSError):
        served.client("bob").get("/v1/running")
    served.replace(ca="next.crt")
    assert served.client("bob").get("/v1/running").code == 200
    with pytest.raises(OSError):
        served.client("ada").get("/v1/running")
