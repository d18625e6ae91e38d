"""A registry: Debian's docker-registry, in a private folder."""

import http.client
import json
import socket

from e2e.testbed import images
from e2e.wait import until

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Registry:
    """A registry that runs at an address."""

    def __init__(self, address):
        self.address = address

    @classmethod
    def serve(cls, folder, start, address=None):
        """Starts one. `start` runs a command as a service; a free loopback address is the default."""
        registry = cls(address or free_address())
        config = folder / "registry.yml"
        # JSON is YAML.
        config.write_text(json.dumps({
            "version": 0.1, "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
            "http": {"addr": registry.address},
        }))
        start("registry", ["docker-registry", "serve", config])
        until(registry._answers, what="the registry", every=0.02)
        return registry

    def push(self, image, name, tag="1"):
        """Builds an image and pushes it; gives its reference."""
        layer, config, manifest = images.build(image)
        for blob in (layer, config):
            location = self._request("POST", f"/v2/{name}/blobs/uploads/", want=202).getheader("Location")
            path = location.partition(self.address)[2] or location
            self._request("PUT", f"{path}&digest={images.digest(blob)}", blob, want=201)
        self._request("PUT", f"/v2/{name}/manifests/{tag}", manifest, MANIFEST, want=201)
        return f"{self.address}/{name}:{tag}"

    def _answers(self):
        try:
            return self._request("GET", "/v2/")
        except OSError:
            return False

    def _request(self, method, path, body=None, kind="application/octet-stream", want=200):
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request(method, path, body, {"Content-Type": kind} if body else {})
        response = connection.getresponse()
        text = response.read()
        if response.status != want:
            raise OSError(f"registry: {method} {path}: {response.status} {text[:500]!r}")
        return response
